"""A Hugging Face hub on this machine: one repository, perhaps a token, and downloads that break off."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlparse

COMMIT = "c" * 40


@dataclass
class Hub:
    """What is served and what was asked; `breaks` are the files whose first download stops halfway."""

    directory: Path
    token: str | None = None
    breaks: set[str] = field(default_factory=set)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)  # method, file, range
    address: str = ""

    @contextmanager
    def running(self) -> Iterator["Hub"]:
        """Serve `directory` as the repository org/tiny on a free port of 127.0.0.1."""
        hub = self

        class Handler(FakeHubHandler):
            served = hub

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = Thread(target=server.serve_forever)
        thread.start()
        self.address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield self
        finally:
            server.shutdown()
            thread.join()
            server.server_close()


class FakeHubHandler(BaseHTTPRequestHandler):
    """The four kinds of request that a download makes."""

    served: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """A repository's description, its tree, or a file."""
        path = unquote(urlparse(self.path).path)
        if self.served.token and self.headers.get("Authorization") != f"Bearer {self.served.token}":
            self.refuse(401, "RepoNotFound")
        elif path.startswith("/api/models/org/tiny/revision/main") or path == "/api/models/org/tiny":
            names = [{"rfilename": name} for name in sorted(self.files())]
            self.answer({"id": "org/tiny", "sha": COMMIT, "siblings": names, "private": False, "tags": []})
        elif path.startswith("/api/models/org/tiny/revision/"):
            self.refuse(404, "RevisionNotFound")
        elif path.startswith("/api/models/org/tiny/tree/"):
            self.answer(
                [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": self.etag(file)}
                    for name, file in sorted(self.files().items())
                ]
            )
        elif path.startswith(f"/org/tiny/resolve/{COMMIT}/"):
            self.send_file(path.removeprefix(f"/org/tiny/resolve/{COMMIT}/"))
        else:
            self.refuse(404, "RepoNotFound")

    do_HEAD = do_GET  # noqa: N815 - the base class's name

    def files(self) -> dict[str, Path]:
        return {path.name: path for path in self.served.directory.iterdir() if path.is_file()}

    def etag(self, file: Path) -> str:
        return hashlib.sha1(file.read_bytes()).hexdigest()

    def send_file(self, name: str) -> None:
        range_ = self.headers.get("Range")
        self.served.requests.append((self.command, name, range_))
        if name not in self.files():
            self.refuse(404, "EntryNotFound")
            return
        file = self.files()[name]
        content = file.read_bytes()
        start = int(range_.removeprefix("bytes=").partition("-")[0]) if range_ else 0
        self.send_response(206 if range_ else 200)
        self.send_header("ETag", f'"{self.etag(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(content) - start))
        if range_:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        if name in self.served.breaks:
            self.served.breaks.remove(name)
            self.wfile.write(content[: len(content) // 2])
            self.close_connection = True
            return
        self.wfile.write(content[start:])

    def answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""

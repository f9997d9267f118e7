"""`trident serve`: what it starts answers, and nothing of it stays behind, however it ends."""

import os
import signal
import socket
import subprocess
import sys
from collections import namedtuple
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import pytest

from client import serve
from client.wire import WireError
from tests.ports import free_ports

pytestmark = pytest.mark.triton

OPTIONS = ("--port", "--grpc-port", "--metrics-port", "--http-port")


@dataclass
class Serving:
    """A running `trident serve`, and the processes below it."""

    process: "subprocess.Popen[str]"
    port: int
    said: str
    below: list[psutil.Process]

    def end(self, number: signal.Signals) -> str:
        """Send a signal and return the last of what it says."""
        self.process.send_signal(number)
        rest, _ = self.process.communicate(timeout=30)
        return rest

    def survivors(self) -> list[psutil.Process]:
        """What still runs of it a moment later."""
        _, alive = psutil.wait_procs(self.below, timeout=10)
        return [process for process in alive if process.status() != psutil.STATUS_ZOMBIE]


def command(repository: Path, ports: list[int], *more: str) -> list[str]:
    options = [word for option, port in zip(OPTIONS, ports, strict=True) for word in (option, str(port))]
    start = [sys.executable, "-m", "client", "serve", "--model", "tiny-attention"]
    return [*start, "--repository", str(repository), *options, *more]


def ignore_ctrl_c() -> None:
    """What a shell does to its background jobs; `serve` is to heed it there as well."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def serving(repository: Path, *more: str) -> Iterator[Serving]:
    ports = free_ports(4)
    with subprocess.Popen(
        command(repository, ports, *more),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        preexec_fn=ignore_ctrl_c,
    ) as process:
        assert process.stdout is not None
        try:
            said = ""
            while "Ctrl-C stops everything" not in said:
                line = process.stdout.readline()
                assert line, f"it ended instead of serving: {said}"
                said += line
            yield Serving(process, ports[0], said, psutil.Process(process.pid).children(recursive=True))
        finally:
            process.kill()


def test_it_prints_a_curl_that_works_and_ctrl_c_leaves_nothing(tiny_repository: Path) -> None:
    with serving(tiny_repository) as running:
        address = f"http://127.0.0.1:{running.port}"
        assert f"curl {address}/v1/chat/completions" in running.said
        assert "trident chat" in running.said
        body = {"model": "tiny-attention", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
        answer = httpx.post(f"{address}/v1/chat/completions", json=body, trust_env=False, timeout=60)
        assert answer.status_code == 200
        assert len(running.below) >= 3, "Triton, a stub and the gateway"
        assert "Stopped." in running.end(signal.SIGINT)
        assert running.process.returncode == 0
        assert running.survivors() == []


def test_killed_itself_it_takes_everything_along(tiny_repository: Path) -> None:
    with serving(tiny_repository) as running:
        running.end(signal.SIGKILL)
        assert running.survivors() == []


def test_a_child_that_dies_ends_the_rest(tiny_repository: Path) -> None:
    with serving(tiny_repository) as running:
        (gateway,) = [process for process in running.below if "gateway" in process.cmdline()]
        os.kill(gateway.pid, signal.SIGKILL)
        running.process.communicate(timeout=30)
        assert running.process.returncode == 1
        assert running.survivors() == []


def test_a_chat_goes_on_after_a_restart_where_the_session_directory_is(
    tiny_repository: Path, tmp_path: Path
) -> None:
    messages = [{"role": "user", "content": "the cat sat on the mat and the dog ran to the cat. " * 8}]
    option = f"--session-directory={tmp_path / 'kept' / 'chats'}"
    answers = []
    for _ in range(2):
        with serving(tiny_repository, option) as running:
            body = {"model": "tiny-attention", "messages": messages, "max_tokens": 8, "seed": 3}
            answer = httpx.post(
                f"http://127.0.0.1:{running.port}/v1/chat/completions",
                json={**body, "prompt_cache_key": "talk"},
                trust_env=False,
                timeout=60,
            ).json()
            answers.append((answer["choices"][0]["message"]["content"], answer["usage"]))
            running.end(signal.SIGINT)
    (first, cold), (second, warm) = answers
    assert second == first
    assert cold["prompt_tokens_details"]["cached_tokens"] == 0
    assert warm["prompt_tokens_details"]["cached_tokens"] >= warm["prompt_tokens"] - 34


def test_a_session_directory_that_can_not_be_made_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WireError, match=r"sessions can't be kept in .*/file \(File exists\); choose another"):
        serve.check(plan(tmp_path, session_directory=tmp_path / "file"))


def test_a_taken_port_is_one_sentence_that_names_the_option(tiny_repository: Path) -> None:
    ports = free_ports(4)
    with socket.create_server(("127.0.0.1", ports[2])):
        ended = subprocess.run(
            command(tiny_repository, ports), capture_output=True, text=True, timeout=60, check=False
        )
    assert ended.returncode == 1
    (sentence,) = ended.stderr.splitlines()
    assert f"port {ports[2]}" in sentence
    assert "--metrics-port" in sentence


def plan(tmp_path: Path, **changes: Path) -> serve.Plan:
    ports = dict(zip(OPTIONS, free_ports(4), strict=True))
    return serve.Plan("tiny-attention", None, ports, repository=tmp_path / "repository", **changes)


def test_a_port_given_twice_is_refused(tmp_path: Path) -> None:
    (port,) = free_ports(1)
    twice = serve.Plan("tiny-attention", None, {"--port": port, "--grpc-port": port}, repository=tmp_path)
    with pytest.raises(WireError, match=f"port {port} is given to --port and --grpc-port"):
        serve.check(twice)


def test_a_missing_environment_names_the_command_that_builds_it(tmp_path: Path) -> None:
    with pytest.raises(WireError, match="make setup"):
        serve.check(plan(tmp_path, environment=tmp_path / "nowhere"))


def test_too_little_disk_for_an_export_is_said_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(serve.shutil, "disk_usage", lambda path: usage(10, 9, 2**30))
    with pytest.raises(WireError, match=r"needs 2 GiB .* there are 1\.0"):
        serve.check(plan(tmp_path))

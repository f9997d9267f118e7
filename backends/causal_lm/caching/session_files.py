"""Parked states on disk: one checked file each, in a directory that stays under a byte budget."""

import json
import re
import struct
import threading
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.caching.prefixes import Prefixes, PrefixIndex
from backends.causal_lm.runtime.state import Bytes

_MAGIC = b"trident-session/1\n"
_CHECKSUM_BYTES = 32
_NAME = re.compile(r"(?P<key>[0-9a-f]{32})\.(?P<length>[1-9]\d{0,9})\.(?P<digest>[0-9a-f]{64})\.session")
_PARTIAL = ".partial"


class SessionFileError(Exception):
    """A file that holds no state for this model: torn, changed, or of another."""


@dataclass(frozen=True, slots=True)
class Parked:
    """The state of a model after `tokens` int32 [N]."""

    tokens: NDArray[np.int32]
    state: Bytes

    @property
    def nbytes(self) -> int:
        """What it takes in memory."""
        return self.tokens.nbytes + self.state.nbytes


def write_state(path: Path, parked: Parked, identity: str) -> None:
    """Write beside first and then in place, so that a reader finds all or nothing; raises OSError.

    What a crash of the machine tears, the checksum tells: nothing waits for the disk.
    """
    header = json.dumps({"identity": identity, "tokens": len(parked.tokens), "bytes": parked.state.nbytes})
    parts = (
        _MAGIC, struct.pack("<I", len(header)), header.encode(),
        parked.tokens.tobytes(), parked.state.data,
    )  # fmt: skip
    partial = path.with_suffix(_PARTIAL)
    try:
        with partial.open("wb") as file:
            file.writelines((*parts, _checksum(parts)))
        partial.replace(path)
    except BaseException:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise


def read_state(path: Path, identity: str) -> Parked:
    """Read a state that a model of this identity has parked; raises SessionFileError, OSError."""
    content = memoryview(path.read_bytes())
    body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
    if not content[: len(_MAGIC)] == _MAGIC or checksum != _checksum([body]):
        raise SessionFileError(f"{path.name} is torn or was changed")
    start = len(_MAGIC) + 4
    (header_length,) = struct.unpack_from("<I", body, len(_MAGIC))
    header = json.loads(bytes(body[start : start + header_length]))
    if header["identity"] != identity:
        raise SessionFileError(f"{path.name} was written by another model or version of it")
    tokens = np.frombuffer(body, "<i4", header["tokens"], start + header_length)
    state = np.frombuffer(body, np.uint8, header["bytes"], start + header_length + tokens.nbytes)
    return Parked(tokens, state)


class SessionDirectory:
    """The files of one model's sessions, least recently used out first; any thread may call.

    Session ids and tokens are in the names as digests only, so listing them is all that a start does.
    Raises OSError where the directory can't be made or listed.
    """

    def __init__(self, path: Path, identity: str, capacity: int) -> None:
        path.mkdir(parents=True, exist_ok=True)
        self._path, self._identity, self._capacity = path, identity, capacity
        self._lock = threading.Lock()
        self._files: OrderedDict[str, tuple[str, int]] = OrderedDict()  # key → name, size; oldest first
        self._index: PrefixIndex[str] = PrefixIndex()
        self.nbytes = 0
        self._list()

    def __len__(self) -> int:
        return len(self._files)

    def __contains__(self, key: str) -> bool:
        return key in self._files

    def begins(self, key: str, prefixes: Prefixes, limit: int) -> bool:
        """Whether the state of `key` is one after at most `limit` of these tokens."""
        with self._lock:
            if key not in self._files:
                return False
            _, length, digest = _parsed(self._files[key][0])
        return length <= limit and prefixes.digest(length) == digest

    def longest(self, prefixes: Prefixes, limit: int) -> tuple[str, int] | None:
        """The key and length of the longest state after at most `limit` of these tokens."""
        with self._lock:
            return self._index.longest(prefixes, limit)

    def write(self, key: str, parked: Parked) -> None:
        """Keep a state in place of the one that `key` had; raises OSError."""
        if parked.nbytes > self._capacity:
            raise OSError(f"it is larger than session_disk_bytes, {self._capacity}")
        digest = Prefixes(parked.tokens).digest(len(parked.tokens))
        name = f"{key}.{len(parked.tokens)}.{digest.hex()}.session"
        with self._lock:
            if self._files.get(key, ("", 0))[0] == name:
                self._files.move_to_end(key)
                return
            self._make_room(parked.nbytes)
        write_state(self._path / name, parked, self._identity)
        with self._lock:
            self._forget(key)
            self._remember(key, name, (self._path / name).stat().st_size)
            self._make_room(0)

    def read(self, key: str) -> Parked:
        """The state of `key`, which counts as used; KeyError if there is none.

        Raises SessionFileError, OSError and forgets the file; another that has taken its place stays.
        """
        with self._lock:
            name, _ = self._files[key]
            self._files.move_to_end(key)
        path = self._path / name
        try:
            parked = read_state(path, self._identity)
        except (SessionFileError, OSError):
            with self._lock:
                if self._files.get(key, ("", 0))[0] == name:
                    self._forget(key)
            raise
        with suppress(OSError):
            path.touch()
        return parked

    def _list(self) -> None:
        found = []
        for path in self._path.iterdir():
            if path.suffix == _PARTIAL:
                path.unlink(missing_ok=True)
            elif _NAME.fullmatch(path.name):
                status = path.stat()
                found.append((status.st_mtime_ns, path.name, status.st_size))
        for _, name, size in sorted(found):
            key, _, _ = _parsed(name)
            self._forget(key)  # a crash may have left an older one beside
            self._remember(key, name, size)
        self._make_room(0)

    def _remember(self, key: str, name: str, size: int) -> None:
        _, length, digest = _parsed(name)
        self._files[key] = (name, size)
        self._index.add(key, length, digest)
        self.nbytes += size

    def _forget(self, key: str) -> None:
        if key not in self._files:
            return
        name, size = self._files.pop(key)
        _, length, digest = _parsed(name)
        self._index.remove(key, length, digest)
        self.nbytes -= size
        with suppress(OSError):
            (self._path / name).unlink(missing_ok=True)

    def _make_room(self, size: int) -> None:
        while self._files and self.nbytes + size > self._capacity:
            self._forget(next(iter(self._files)))


def _parsed(name: str) -> tuple[str, int, bytes]:
    """The key, the number of tokens and their digest in a file's name."""
    match = _NAME.fullmatch(name)
    assert match is not None
    return match["key"], int(match["length"]), bytes.fromhex(match["digest"])


def _checksum(parts: Iterable[bytes | memoryview]) -> bytes:
    checksum = blake2b(digest_size=_CHECKSUM_BYTES)
    for part in parts:
        checksum.update(part)
    return checksum.digest()

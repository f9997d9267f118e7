"""Conversations set aside: their state in memory, then on disk, until they go on."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

from backends.causal_lm.caching.prefixes import Prefixes, PrefixIndex
from backends.causal_lm.caching.session_files import Parked, SessionDirectory, SessionFileError
from backends.causal_lm.metrics import Metrics

_LOGGER = logging.getLogger(__name__)


def session_key(session_id: str) -> str:
    """What a session is called inside and on disk, whatever its id is made of."""
    return blake2b(session_id.encode(), digest_size=16).hexdigest()


@dataclass(slots=True)
class _Held:
    """A state in memory; `settled` once it is on disk, or never will be."""

    parked: Parked
    digest: bytes
    settled: bool


class Sessions:
    """Parked states, `capacity` bytes of them in memory and the rest in `directory`, if there is one.

    A state is used for no other tokens than its own, so a session may go on from any other's ("fork"): its
    id says which state the next one takes the place of. The disk is read and written by threads of its own.
    """

    def __init__(self, capacity: int, directory: SessionDirectory | None, metrics: Metrics) -> None:
        self._capacity, self._directory, self._metrics = capacity, directory, metrics
        self._lock = threading.Lock()
        self._held: OrderedDict[str, _Held] = OrderedDict()  # oldest first
        self._index: PrefixIndex[str] = PrefixIndex()
        self._nbytes = 0
        self._closed = False
        self._writer = ThreadPoolExecutor(1, "session-writer")
        self._reader = ThreadPoolExecutor(1, "session-reader")
        self._report()

    @property
    def has_disk(self) -> bool:
        """Whether what is parked outlives this process."""
        return self._directory is not None

    def fetch(self, key: str, prefixes: Prefixes, limit: int, then: Callable[[str | None], None]) -> None:
        """Bring the state to go on from into memory; `then` gets its key, or None, perhaps in another thread.

        It is the session's own if that begins the tokens, else the longest of all that do, of at most
        `limit` tokens.
        """
        source = self._source(key, prefixes, limit)
        if source is None or source in self._held or self._closed:
            then(source)
        else:
            self._reader.submit(self._load, source, then)

    def take(self, key: str, prefixes: Prefixes, limit: int) -> Parked | None:
        """The state of `key` if it is in memory and one after at most `limit` of these tokens."""
        with self._lock:
            if not self._begins(key, prefixes, limit):
                return None
            self._held.move_to_end(key)
            return self._held[key].parked

    def park(self, key: str, parked: Parked) -> None:
        """Set a session's state aside in place of its last; what can't be kept is recomputed when needed."""
        digest = Prefixes(parked.tokens).digest(len(parked.tokens))
        with self._lock:
            self._forget(key)
            kept = self._hold(key, _Held(parked, digest, settled=self._directory is None))
        if not kept:
            self._lose(
                "a state has %d bytes, more than session_memory_bytes, %d", parked.nbytes, self._capacity
            )
        elif self._directory is not None:
            self._writer.submit(self._write, key)
        self._report()

    def close(self) -> None:
        """Wait until what was parked is on disk; twice is harmless."""
        self._closed = True
        self._reader.shutdown()
        self._writer.shutdown()

    def _source(self, key: str, prefixes: Prefixes, limit: int) -> str | None:
        directory = self._directory
        with self._lock:
            if self._begins(key, prefixes, limit):
                return key
            found = [self._index.longest(prefixes, limit)]
        if directory is not None:
            if directory.begins(key, prefixes, limit):
                return key
            found.append(directory.longest(prefixes, limit))
        return max((each for each in found if each), key=lambda each: each[1], default=(None, 0))[0]

    def _begins(self, key: str, prefixes: Prefixes, limit: int) -> bool:
        held = self._held.get(key)
        if held is None:
            return False
        length = len(held.parked.tokens)
        return length <= limit and prefixes.digest(length) == held.digest

    def _load(self, key: str, then: Callable[[str | None], None]) -> None:
        try:
            self._read(key)
        except Exception:
            _LOGGER.exception("a parked state can't be read")
        finally:
            then(key)

    def _read(self, key: str) -> None:
        assert self._directory is not None
        try:
            parked = self._directory.read(key)
        except KeyError:  # has made room since
            return
        except (SessionFileError, OSError) as error:
            _LOGGER.warning("a parked state is refused (%s); its tokens are read again", error)
            self._metrics.add("sessions_refused_total", 1)
            return
        digest = Prefixes(parked.tokens).digest(len(parked.tokens))
        with self._lock:
            if key not in self._held:
                self._hold(key, _Held(parked, digest, settled=True))

    def _write(self, key: str) -> None:
        assert self._directory is not None
        held = self._held.get(key)
        if held is None or held.settled:
            return
        try:
            self._directory.write(key, held.parked)
        except OSError as error:
            self._lose("its %d bytes can't be written (%s)", held.parked.nbytes, error)
        held.settled = True
        self._report()

    def _hold(self, key: str, held: _Held) -> bool:
        """Take a state into memory, making room; false for one that is larger than all of it."""
        size = held.parked.nbytes
        if size > self._capacity:
            return False
        while self._nbytes + size > self._capacity:
            self._make_room()
        self._held[key] = held
        self._index.add(key, len(held.parked.tokens), held.digest)
        self._nbytes += size
        return True

    def _make_room(self) -> None:
        """Forget the oldest state that is on disk; when the disk is far behind, the oldest of all."""
        settled = (key for key, held in self._held.items() if held.settled)
        key = next(settled, None) or next(iter(self._held))
        if not self._held[key].settled:
            self._lose("the disk is slower than sessions end")
        self._forget(key)

    def _forget(self, key: str) -> None:
        held = self._held.pop(key, None)
        if held is not None:
            self._index.remove(key, len(held.parked.tokens), held.digest)
            self._nbytes -= held.parked.nbytes

    def _lose(self, why: str, *values: object) -> None:
        _LOGGER.warning("a session is lost: " + why, *values)
        self._metrics.add("sessions_lost_total", 1)

    def _report(self) -> None:
        self._metrics.set("session_memory_bytes", self._nbytes)
        self._metrics.set("session_disk_bytes", self._directory.nbytes if self._directory else 0)

"""What need not be read again: between the rows of the running and what is kept of those before."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from backends.causal_lm.caching.prefix_cache import PrefixCache
from backends.causal_lm.caching.prefixes import BLOCK, Prefixes
from backends.causal_lm.caching.session_files import Parked
from backends.causal_lm.caching.sessions import Sessions, session_key
from backends.causal_lm.manifest import Manifest
from backends.causal_lm.metrics import Metrics
from backends.causal_lm.runtime.runner import Runner
from backends.causal_lm.scheduling.scheduler import Chunk
from backends.causal_lm.sequences.sequence import Sequence

_KV, _RECURRENT = ("kv",), ("recurrent",)
_KINDS = (*_KV, *_RECURRENT)
_SNAPSHOT_SPACING = 256  # tokens between the snapshots inside a prompt, for others that begin alike
_SHORTEST_CUT = 128  # tokens; a shorter prompt is read again in about the time that a pause takes


class Recall:
    """Fills a row with what is known of a prompt, and keeps what was read or said, in the engine's thread.

    A state is kept only where reading the same tokens anew would give the same bits, so that no text depends
    on what was remembered: after prompts, and after answers where the graph decodes as it reads. Two tokens
    or more are left to read, for one alone is rounded otherwise (scheduler.py).
    """

    def __init__(
        self, runner: Runner, manifest: Manifest, *, cache_bytes: int, sessions: Sessions, metrics: Metrics
    ) -> None:
        self._runner, self._sessions, self._metrics = runner, sessions, metrics
        kinds = {state.kind for state in manifest.states}
        self._has_recurrent = "recurrent" in kinds
        self._cache = PrefixCache(kinds, cache_bytes)

    def prepare(self, sequence: Sequence, then: Callable[[], None]) -> None:
        """Bring what a session goes on from into memory; `then` is called once, perhaps in another thread."""
        session_id = sequence.request.session_id
        if session_id is None:
            then()
            return

        def found(source: str | None) -> None:
            sequence.parked_as = source
            then()

        prefixes = sequence.prefixes[0]
        self._sessions.fetch(session_key(session_id), prefixes, len(prefixes) - 2, found)

    def resume(self, sequence: Sequence, prompt: int, row: int) -> int:
        """Fill a row that was reset with the longest known beginning of a prompt; its tokens."""
        prefixes = sequence.prefixes[prompt]
        length = self._from_session(sequence, row) or self._from_cache(prefixes, row)
        sequence.num_cached_tokens += length
        return length

    def cut(self, chunk: Chunk[Sequence]) -> Chunk[Sequence]:
        """The chunk, ended early where a state that runs on must be copied."""
        boundary = _boundary(chunk)
        inside = chunk.start < boundary < chunk.stop and (boundary - chunk.start) % BLOCK != 1
        wanted = self._has_recurrent and boundary >= _SHORTEST_CUT and self._keeps(chunk.sequence)
        return replace(chunk, stop=boundary) if inside and wanted else chunk

    def keep_read(self, chunk: Chunk[Sequence]) -> None:
        """Keep what a chunk's row now holds of its prompt."""
        sequence, boundary = chunk.sequence, _boundary(chunk)
        if self._cache.capacity:
            self._cache_read(chunk)
        if sequence.request.session_id is None or self._runner.decodes_as_it_reads:
            return
        reached = chunk.stop == boundary if self._has_recurrent else chunk.start < boundary <= chunk.stop
        if reached and self._sessions.has_disk:  # in memory the cache does the same, and shares it
            self._park(sequence, Prefixes(sequence.prefixes[0].tokens[:boundary]), chunk.row)

    def keep_answer(self, sequence: Sequence, row: int) -> None:
        """Keep what the row of a sequence holds at its end, prompt and answer."""
        if not self._runner.decodes_as_it_reads or len(sequence.prefixes) > 1 or not self._keeps(sequence):
            return
        tokens = np.concatenate([*sequence.request.prompts, sequence.generated])[: sequence.lengths[0]]
        prefixes = Prefixes(tokens)
        if self._cache.capacity:
            self._cache_snapshot(prefixes, len(prefixes), row)
        if sequence.request.session_id is not None:
            self._park(sequence, prefixes, row)

    def close(self) -> None:
        """Wait until what was parked is on disk."""
        self._sessions.close()

    def _keeps(self, sequence: Sequence) -> bool:
        return self._cache.capacity > 0 or sequence.request.session_id is not None

    def _from_session(self, sequence: Sequence, row: int) -> int:
        """Resume from a parked state, unless the cache knows more; its tokens, or 0."""
        if sequence.parked_as is None:
            return 0
        prefixes = sequence.prefixes[0]
        limit = len(prefixes) - 2
        parked = self._sessions.take(sequence.parked_as, prefixes, limit)
        if parked is None or len(parked.tokens) < self._cache.longest(prefixes, limit).length:
            return 0
        self._runner.load(row, _KINDS, 0, len(parked.tokens), parked.state)
        self._metrics.add("sessions_resumed_total", 1)
        return len(parked.tokens)

    def _from_cache(self, prefixes: Prefixes, row: int) -> int:
        if not self._cache.capacity:
            return 0
        prefix = self._cache.longest(prefixes, len(prefixes) - 2)
        for block, rows in enumerate(prefix.blocks):
            self._runner.load(row, _KV, block * BLOCK, (block + 1) * BLOCK, rows)
        if prefix.snapshot is not None:
            self._runner.load(row, _RECURRENT, 0, 0, prefix.snapshot)
        self._metrics.add("prefix_cache_queries_total", len(prefixes))
        self._metrics.add("prefix_cache_hits_total", prefix.length)
        return prefix.length

    def _cache_read(self, chunk: Chunk[Sequence]) -> None:
        prefixes = chunk.sequence.prefixes[chunk.prompt]
        rows = {
            block: self._runner.save(chunk.row, _KV, block * BLOCK, (block + 1) * BLOCK)
            for block in self._cache.missing_blocks(prefixes, chunk.stop)
        }
        self._cache.keep_blocks(prefixes, rows)
        if chunk.stop % _SNAPSHOT_SPACING == 0 or chunk.stop == _boundary(chunk):
            self._cache_snapshot(prefixes, chunk.stop, chunk.row)
        self._metrics.set("prefix_cache_bytes", self._cache.nbytes)

    def _cache_snapshot(self, prefixes: Prefixes, length: int, row: int) -> None:
        if self._cache.lacks_snapshot(prefixes, length):
            self._cache.keep_snapshot(prefixes, length, self._runner.save(row, _RECURRENT, 0, 0))
            self._metrics.set("prefix_cache_bytes", self._cache.nbytes)

    def _park(self, sequence: Sequence, prefixes: Prefixes, row: int) -> None:
        assert sequence.request.session_id is not None
        state = self._runner.save(row, _KINDS, 0, len(prefixes))
        self._sessions.park(session_key(sequence.request.session_id), Parked(prefixes.tokens, state))


def _boundary(chunk: Chunk[Sequence]) -> int:
    """The end of a chunk's prompt in whole blocks, with two tokens or more left to read."""
    return max(0, chunk.sequence.prompt_lengths[chunk.prompt] - 2) // BLOCK * BLOCK

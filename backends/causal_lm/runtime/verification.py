"""Several tokens of one row in one run of the graph, as if they had been decoded one after another."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.manifest import LoadError, Manifest
from backends.causal_lm.runtime.binding import bind_states, bind_tokens, bind_told
from backends.causal_lm.runtime.state import Bytes, StatePools

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]

_RECURRENT = ("recurrent",)


class Verifier(Protocol):
    """`verify` and `keep` of a Runner."""

    def verify(self, row: int, tokens: Tokens, start: int) -> tuple[Floats, Floats]: ...

    def keep(self, row: int, count: int) -> None: ...


def build_verifier(
    session: Any, manifest: Manifest, states: StatePools, *, most: int, rows: int
) -> Verifier | None:
    """The way that fits the model's states for up to `most` tokens in one of the first `rows` rows.

    None for both kinds of state together: attention rounds otherwise for several tokens of a row than for
    one, a recurrence does not. Raises LoadError where the kernel does not map as much.
    """
    kinds = {state.kind for state in manifest.states}
    if most < 2 or rows < 1 or len(kinds) != 1:
        return None
    if kinds == {"recurrent"}:
        return RecurrentVerifier(session, manifest, states, most)
    if not states.are_repeatable:
        return None
    try:
        return CacheVerifier(session, manifest, states, most=most, rows=rows)
    except OSError as error:
        raise LoadError(
            f"{rows} rows can't be seen {most} times each ({error}): "
            "lower the parameters speculative_streams or speculative_tokens"
        ) from error


class _Buffers:
    """What a run of up to `most` tokens reads and tells; places count from 0."""

    def __init__(self, manifest: Manifest, most: int) -> None:
        self.tokens, self.positions = np.zeros(most, np.int64), np.zeros(most, np.int64)
        self.places, self.ones, self.zeros = (
            np.arange(most),
            np.ones(most, np.int64),
            np.zeros(most, np.int64),
        )
        self.logits = np.zeros((most, manifest.vocab_size), np.float32)
        self.figures = np.zeros((len(manifest.extra_outputs), most), np.float32)

    def fill(self, tokens: Tokens, start: int) -> None:
        (T,) = tokens.shape
        self.tokens[:T] = tokens
        np.add(self.places[:T], start, out=self.positions[:T])

    def told(self, T: int) -> tuple[Floats, Floats]:
        """Logits [T, V] and extra outputs [T, F]."""
        return self.logits[:T], self.figures[:, :T].T


class CacheVerifier:
    """For caches: the row is seen as T rows of one token each, all in the same memory.

    GroupQueryAttention appends every row's key and value before any row attends, so each token finds those
    before it, and runs through the very kernels of decoding. Several tokens in one row would not: attention
    sums in another order then, and a quantized graph makes a difference of 0.5 in a logit of that.
    """

    def __init__(self, session: Any, manifest: Manifest, states: StatePools, *, most: int, rows: int) -> None:
        self._session, self._manifest, self._states = session, manifest, states
        self._buffers = _Buffers(manifest, most)
        self._rows = [states.repeated(row, most) for row in range(rows)]
        self._bindings: dict[tuple[int, int], Any] = {}

    def verify(self, row: int, tokens: Tokens, start: int) -> tuple[Floats, Floats]:
        (T,) = tokens.shape
        self._buffers.fill(tokens, start)
        binding = self._bindings.get((row, T))
        if binding is None:
            binding = self._bindings[row, T] = self._bind(row, T)
        self._session.run_with_iobinding(binding)
        return self._buffers.told(T)

    def keep(self, row: int, count: int) -> None:
        """Nothing is to be done: a cache is read by length."""

    def _bind(self, row: int, T: int) -> Any:
        binding, own = self._session.io_binding(), self._buffers
        bind_states(binding, self._states.states, [array[:T] for array in self._rows[row]])
        bind_tokens(binding, own.tokens, own.positions, own.ones[:T], own.zeros[:T, None], (T, 1))
        bind_told(binding, self._manifest.extra_outputs, own.logits[:T, None], own.figures[:, :T, None])
        return binding


class RecurrentVerifier:
    """For recurrent states: T tokens in one row; what must not stay is undone by a copy from before."""

    def __init__(self, session: Any, manifest: Manifest, states: StatePools, most: int) -> None:
        self._session, self._manifest, self._states = session, manifest, states
        self._buffers = _Buffers(manifest, most)
        self._before: Bytes = np.zeros(0, np.uint8)
        self._start = self._count = 0

    def verify(self, row: int, tokens: Tokens, start: int) -> tuple[Floats, Floats]:
        self._before = self._states.save(row, _RECURRENT, 0, 0)
        self._start, self._count = start, len(tokens)
        self._buffers.fill(tokens, start)
        self._run(row, len(tokens))
        return self._buffers.told(len(tokens))

    def keep(self, row: int, count: int) -> None:
        """Back to where the row was, and over the tokens that stay."""
        if count < self._count:
            self._states.load(row, _RECURRENT, 0, 0, self._before)
            self._run(row, count)

    def _run(self, row: int, T: int) -> None:
        binding, own = self._session.io_binding(), self._buffers
        bind_states(binding, self._states.states, [pool[row : row + 1] for pool in self._states.pools])
        length = np.array([T])
        bind_tokens(binding, own.tokens, own.positions, length, own.places[None, :T], (1, T))
        bind_told(binding, self._manifest.extra_outputs, own.logits[None, :T], own.figures[:, None, :T])
        self._session.run_with_iobinding(binding)

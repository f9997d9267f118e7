"""ONNX Runtime on the CPU: one session for prefill and decode, bound to row views of the state pools."""

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.causal_lm.manifest import LoadError, Manifest, State, check_stamp
from backends.causal_lm.runtime.binding import bind_output, bind_states, bind_tokens, bind_told
from backends.causal_lm.runtime.graph_file import check_signature, open_session
from backends.causal_lm.runtime.state import Bytes, StatePools
from backends.causal_lm.runtime.verification import build_verifier
from backends.causal_lm.settings import EngineSettings

_RECURRENT = ("recurrent",)


class OnnxRuntimeRunner:
    """The Runner over an ONNX Runtime session.

    Present states are written over past states (`GroupQueryAttention` asks for it, `LinearAttention` allows
    it, loading proves it), so a step moves no state; bindings are made once per number of rows and per row.
    """

    def __init__(self, directory: Path, manifest: Manifest, settings: EngineSettings) -> None:
        if manifest.engine != "onnxruntime":
            raise LoadError(
                f"engine {manifest.engine!r} can't be run here, known is 'onnxruntime'; "
                f"export {manifest.model!r} with --engine onnxruntime"
            )
        check_stamp(manifest, "onnxruntime", ort.__version__)
        self._manifest = manifest
        self._session = open_session(directory / manifest.graph, settings)
        check_signature(self._session, manifest)
        self._states = StatePools(manifest.states, settings.slots)
        self._allocate(settings)
        self._prove_in_place()
        self._most_verified = 1 + settings.speculative_tokens
        self._verifier = build_verifier(
            self._session,
            manifest,
            self._states,
            most=self._most_verified,
            rows=min(settings.slots, settings.speculative_streams),
        )
        if not self._is_verifying_exact():
            self._most_verified = 0
        self._decodes_as_it_reads = self._compare_decoding()

    def _allocate(self, settings: EngineSettings) -> None:
        slots, vocab_size = settings.slots, self._manifest.vocab_size
        width = max(slots, settings.prefill_tokens)
        self._tokens, self._positions = np.zeros(width, np.int64), np.zeros(width, np.int64)
        self._ones, self._zeros = np.ones(slots, np.int64), np.zeros(slots, np.int64)
        self._length, self._places = np.ones(1, np.int64), np.arange(width)
        num_figures = len(self._manifest.extra_outputs)
        self._logits = np.zeros((slots, vocab_size), np.float32)
        self._figures = np.zeros((num_figures, slots), np.float32)
        self._decode_bindings: dict[int, Any] = {}
        self._row_bindings: dict[int, Any] = {}

    @property
    def figures(self) -> NDArray[np.float32]:
        """The manifest's extra outputs [slots, F] at the last token that each row was given."""
        return self._figures.T

    @property
    def most_verified(self) -> int:
        """How many tokens `verify` takes, a draft and the one before it; 0 where that could be told."""
        return self._most_verified

    @property
    def decodes_as_it_reads(self) -> bool:
        """Whether `decode` leaves, to the bit, the states that `prefill` leaves of the same tokens."""
        return self._decodes_as_it_reads

    def prefill(self, row: int, tokens: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """Append `tokens` [T] at position `start` of `row`; logits [V] after the last one."""
        (T,) = tokens.shape
        binding = self._bind_row(row, tokens, start, self._places[T - 1 : T])
        self._bind_told(binding, self._logits[row : row + 1, None], self._figures[:, row : row + 1, None])
        self._session.run_with_iobinding(binding)
        row_logits: NDArray[np.float32] = self._logits[row]
        return row_logits

    def decode(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append token i at positions[i] of row i; logits [n, V]."""
        (n,) = tokens.shape
        self._tokens[:n] = tokens
        self._positions[:n] = positions
        binding = self._decode_bindings.get(n)
        if binding is None:
            binding = self._decode_bindings[n] = self._bind_decode(n)
        self._session.run_with_iobinding(binding)
        return self._logits[:n]

    def verify(
        self, row: int, tokens: NDArray[np.int64], start: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Append `tokens` [T] at position `start` of `row`; logits [T, V] and figures [T, F] after each.

        `keep` says how many of them stay.
        """
        assert self._verifier is not None
        return self._verifier.verify(row, tokens, start)

    def keep(self, row: int, count: int) -> None:
        """Let the first `count` tokens of what `verify` has appended to `row` stay, and no other."""
        assert self._verifier is not None
        self._verifier.keep(row, count)

    def reset(self, row: int) -> None:
        """Make `row` fit for a new sequence."""
        self._states.reset(row)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens from row `source` to row `target`."""
        self._states.move(source, target, length)

    def save(self, row: int, kinds: Collection[str], start: int, stop: int) -> Bytes:
        """A copy of a row's states of these `kinds`: `kv` at positions [start, stop)."""
        return self._states.save(row, kinds, start, stop)

    def load(self, row: int, kinds: Collection[str], start: int, stop: int, saved: Bytes) -> None:
        """Write back what `save` gave for the same kinds and positions; ValueError for another size."""
        self._states.load(row, kinds, start, stop, saved)

    def _bind_decode(self, n: int) -> Any:
        """One token for each of the first `n` rows."""
        binding = self._bind_states(0, n)
        bind_tokens(binding, self._tokens, self._positions, self._ones[:n], self._zeros[:n, None], (n, 1))
        self._bind_told(binding, self._logits[:n, None], self._figures[:, :n, None])
        return binding

    def _bind_row(self, row: int, tokens: NDArray[np.int64], start: int, places: NDArray[np.int64]) -> Any:
        """These tokens behind what `row` holds, with logits at these `places`; where to is not bound yet."""
        (T,) = tokens.shape
        self._tokens[:T] = tokens
        self._positions[:T] = np.arange(start, start + T)
        self._length[0] = T
        binding = self._row_bindings.get(row)
        if binding is None:
            binding = self._row_bindings[row] = self._bind_states(row, 1)
        bind_tokens(binding, self._tokens, self._positions, self._length, places[None], (1, T))
        return binding

    def _bind_states(self, first: int, count: int) -> Any:
        """A binding of the states of rows [first, first + count), in place."""
        binding = self._session.io_binding()
        bind_states(
            binding, self._states.states, [pool[first : first + count] for pool in self._states.pools]
        )
        return binding

    def _bind_told(self, binding: Any, logits: NDArray[np.float32], figures: NDArray[np.float32]) -> None:
        bind_told(binding, self._manifest.extra_outputs, logits, figures)

    def _prove_in_place(self) -> None:
        """Run a step with recurrent states in place and apart; a graph where it matters can't be served."""
        recurrent = [
            (state, pool[:1])
            for state, pool in zip(self._states.states, self._states.pools, strict=True)
            if state.kind == "recurrent"
        ]
        names = ["logits", "the extra outputs", *(state.present for state, _ in recurrent)]
        found = zip(names, self._probe(recurrent, False), self._probe(recurrent, True), strict=True)
        for name, in_place, apart in found:
            if not np.array_equal(in_place, apart):
                raise LoadError(f"{name} changes when states are written in place; export the model again")
        self.reset(0)

    def _compare_decoding(self) -> bool:
        """Read a few tokens at once and one by one; attention rounds otherwise, and isn't tried."""
        if {state.kind for state in self._states.states} != {"recurrent"}:
            return False
        T = min(8, len(self._tokens))
        tokens, found = np.arange(T) % self._manifest.vocab_size, []
        for read in (T, 2):
            self.reset(0)
            self.prefill(0, tokens[:read], 0)
            for position in range(read, T):
                self.decode(tokens[position : position + 1], self._places[position : position + 1])
            found.append(self._states.save(0, _RECURRENT, 0, 0))
        self.reset(0)
        at_once, one_by_one = found
        return np.array_equal(at_once, one_by_one)

    def _is_verifying_exact(self) -> bool:
        """Decode a few tokens, and verify them at once: to the bit alike, or drafts are not offered."""
        if self._verifier is None:
            return False
        read, T = 2, self._most_verified
        tokens, found = np.random.default_rng(0).integers(self._manifest.vocab_size, size=read + T), []
        for decodes in (True, False):
            self.reset(0)
            self.prefill(0, tokens[:read], 0)
            if decodes:
                steps = [self._decode_in_row_0(tokens, position) for position in range(read, read + T)]
                logits, figures = (np.stack(column) for column in zip(*steps, strict=True))
            else:
                logits, figures = self._verifier.verify(0, tokens[read:], read)
            found.append((logits, figures, self._states.save(0, ("kv", "recurrent"), 0, read + T)))
        self.reset(0)
        return all(np.array_equal(one, other) for one, other in zip(*found, strict=True))

    def _decode_in_row_0(
        self, tokens: NDArray[np.int64], position: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        logits = self.decode(tokens[position : position + 1], self._places[position : position + 1])
        return logits[0].copy(), self.figures[0].copy()

    def _probe(self, recurrent: list[tuple[State, NDArray[Any]]], apart: bool) -> list[NDArray[Any]]:
        """Logits, figures and present recurrent states of one step in row 0, from fixed past states."""
        binding = self._bind_decode(1)
        presents = []
        for state, past in recurrent:
            # Above zero, for counts are states too, and what they count has a logarithm.
            past[...] = np.linspace(0, 1, past.size, dtype=past.dtype).reshape(past.shape)
            presents.append(np.zeros_like(past) if apart else past)
            bind_output(binding, state.present, presents[-1])
        self._session.run_with_iobinding(binding)
        return [array.copy() for array in (self._logits[0], self.figures[0], *presents)]

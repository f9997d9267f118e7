"""ONNX Runtime on the CPU: one session for prefill and decode, bound to row views of the state pools."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.causal_lm.manifest import LoadError, Manifest, State, check_stamp
from backends.causal_lm.settings import EngineSettings
from backends.causal_lm.state import StatePools

_TOKEN_INPUTS = ("input_ids", "positions", "lengths")


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
        self._session = _session(directory / manifest.graph, settings)
        _check_signature(self._session, manifest)
        self._states = StatePools(manifest.states, settings.slots)
        self._allocate(settings)
        self._prove_in_place()

    def _allocate(self, settings: EngineSettings) -> None:
        slots, vocab_size = settings.slots, self._manifest.vocab_size
        width = max(slots, settings.prefill_tokens)
        self._tokens, self._positions = np.zeros(width, np.int64), np.zeros(width, np.int64)
        self._ones, self._length = np.ones(slots, np.int64), np.ones(1, np.int64)
        self._logits = np.zeros((slots, vocab_size), np.float32)
        self._figures = np.zeros((len(self._manifest.extra_outputs), slots), np.float32)
        self._decode_bindings: dict[int, Any] = {}
        self._prefill_bindings: dict[int, Any] = {}

    @property
    def figures(self) -> NDArray[np.float32]:
        """The manifest's extra outputs [slots, F] at the last token that each row was given."""
        return self._figures.T

    def prefill(self, row: int, tokens: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """Append `tokens` [T] at position `start` of `row`; logits [V] after the last one."""
        (T,) = tokens.shape
        self._tokens[:T] = tokens
        self._positions[:T] = np.arange(start, start + T)
        self._length[0] = T
        binding = self._prefill_bindings.get(row)
        if binding is None:
            binding = self._prefill_bindings[row] = self._bind(row, 1)
        self._bind_tokens(binding, (1, T), self._length)
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
            binding = self._decode_bindings[n] = self._bind(0, n)
            self._bind_tokens(binding, (n, 1), self._ones[:n])
        self._session.run_with_iobinding(binding)
        return self._logits[:n]

    def reset(self, row: int) -> None:
        """Make `row` fit for a new sequence."""
        self._states.reset(row)

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens from row `source` to row `target`."""
        self._states.move(source, target, length)

    def _bind(self, first: int, count: int) -> Any:
        """A binding of rows [first, first + count): states in place, logits, figures."""
        binding = self._session.io_binding()
        for state, pool in zip(self._states.states, self._states.pools, strict=True):
            rows = pool[first : first + count]
            _bind_input(binding, state.past, rows, rows.shape)
            _bind_output(binding, state.present, rows)
        _bind_output(binding, "logits", self._logits[first : first + count])
        for name, figure in zip(self._manifest.extra_outputs, self._figures, strict=True):
            _bind_output(binding, name, figure[first : first + count])
        return binding

    def _bind_tokens(self, binding: Any, shape: tuple[int, int], lengths: NDArray[np.int64]) -> None:
        _bind_input(binding, "input_ids", self._tokens, shape)
        _bind_input(binding, "positions", self._positions, shape)
        _bind_input(binding, "lengths", lengths, lengths.shape)

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

    def _probe(self, recurrent: list[tuple[State, NDArray[Any]]], apart: bool) -> list[NDArray[Any]]:
        """Logits, figures and present recurrent states of one step in row 0, from fixed past states."""
        binding = self._bind(0, 1)
        self._bind_tokens(binding, (1, 1), self._ones[:1])
        presents = []
        for state, past in recurrent:
            # Above zero, for counts are states too, and what they count has a logarithm.
            past[...] = np.linspace(0, 1, past.size, dtype=past.dtype).reshape(past.shape)
            presents.append(np.zeros_like(past) if apart else past)
            _bind_output(binding, state.present, presents[-1])
        self._session.run_with_iobinding(binding)
        return [array.copy() for array in (self._logits[0], self.figures[0], *presents)]


def _session(path: Path, settings: EngineSettings) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    if not path.is_file():
        raise LoadError(f"{path} is missing; export the model again")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise LoadError(f"{path} can't be loaded ({error}); export the model again") from error


def _check_signature(session: ort.InferenceSession, manifest: Manifest) -> None:
    """Refuse a graph whose tensors are not those that the manifest names."""
    states = manifest.states
    _compare("inputs", session.get_inputs(), [*_TOKEN_INPUTS, *(state.past for state in states)])
    presents = [state.present for state in states]
    _compare("outputs", session.get_outputs(), ["logits", *presents, *manifest.extra_outputs])
    shapes = {value.name: tuple(value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())}
    expected = {state.past: state.shape for state in states} | {"logits": (manifest.vocab_size,)}
    expected |= dict.fromkeys(manifest.extra_outputs, ())
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise LoadError(f"{name} has shape {shapes[name]} per row in the graph, {shape} in manifest.json")


def _compare(what: str, found: Sequence[Any], expected: list[str]) -> None:
    names = {value.name for value in found}
    if names != set(expected):
        missing, unknown = sorted(set(expected) - names), sorted(names - set(expected))
        raise LoadError(f"the graph's {what} differ from manifest.json: missing {missing}, unknown {unknown}")


def _bind_input(binding: Any, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)


def _bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

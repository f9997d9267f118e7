"""Runs an exported graph step by step on ONNX Runtime, with the states bound as the engine binds them."""

import math
import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

Tokens = NDArray[np.int64]
Logits = NDArray[np.float32]


class State(Protocol):
    """What of a state tensor must be known to bind it: its two names, its kind, its shape per sequence."""

    @property
    def kind(self) -> str: ...
    @property
    def past(self) -> str: ...
    @property
    def present(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


class Slots:
    """The states of `count` sequences, one array (count, *shape) per state tensor, zero at first.

    `dtypes` are those of the graph, which for a cache may be narrower than the decoder's own.

    A cache is only ever read up to the length of its sequence, so a used row needs no clearing; a recurrent
    state does.
    """

    def __init__(self, specs: Sequence[State], dtypes: Mapping[str, str], count: int) -> None:
        self.specs = specs
        self.arrays = [_lazy_zeros((count, *spec.shape), dtypes[spec.past]) for spec in specs]

    def rows(self, first: int, count: int) -> list[NDArray[Any]]:
        """The states of `count` rows from `first`; views, no copies."""
        return [array[first : first + count] for array in self.arrays]

    def reuse(self, row: int) -> None:
        """Give `row` to a new sequence, as the engine does: what is in a cache stays there."""
        for spec, array in zip(self.specs, self.arrays, strict=True):
            if spec.kind == "recurrent":
                array[row] = 0


def _lazy_zeros(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    """Zeros that take memory only where they are written, so that a long cache costs nothing.

    numpy.zeros would ask for huge pages, and then the first token of a row and head takes 2 MB.
    """
    memory = mmap.mmap(-1, math.prod(shape) * np.dtype(dtype).itemsize)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, dtype).reshape(shape)


def input_dtypes(path: Path) -> dict[str, str]:
    """The numpy name of each input's type in the graph at `path`; reads no weights."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    types = {value.name: value.type.tensor_type.elem_type for value in inputs}
    return {name: onnx.helper.tensor_dtype_to_np_dtype(kind).name for name, kind in types.items()}


class GraphSession:
    """One graph. `is_fused` is ONNX Runtime's own graph, not the one in standard operators.

    Caches are always written in place; recurrent states only by the fused graph, whose operator allows it.
    `figures` names the extra outputs; after each call, `told` holds them, shaped like the logits without V.
    """

    def __init__(
        self,
        path: Path,
        specs: Sequence[State],
        *,
        is_fused: bool,
        threads: int = 0,
        figures: Sequence[str] = (),
    ) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        # Idle workers sleep: PyTorch's own run in turns with these, and spinning ones would take its cores.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if not is_fused:
            # TensorRT's graph as it is written, not as this CPU would fuse it.
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        self.specs = specs
        self.is_fused = is_fused
        self.figures = tuple(figures)
        self.told: dict[str, NDArray[np.float32]] = {}
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.dtypes = input_dtypes(path)
        self._vocab_size: int = self._session.get_outputs()[0].shape[2]

    def slots(self, count: int) -> Slots:
        """Fresh states for `count` sequences."""
        return Slots(self.specs, self.dtypes, count)

    def append(
        self, slots: Slots, first: int, tokens: Tokens, positions: Tokens, lengths: Tokens | None = None
    ) -> Logits:
        """Append `tokens` (B, T) at `positions` (B, T) to the rows from `first`; logits (B, V) at the last.

        `lengths` (B,) are the valid tokens of each row (default: all).
        """
        B, T = tokens.shape
        lengths = np.full(B, T) if lengths is None else lengths
        logits = self._run(slots, first, tokens, positions, lengths, lengths[:, None] - 1)
        self.told = {name: figure[:, 0] for name, figure in self.told.items()}
        last: Logits = logits[:, 0]
        return last

    def verify(self, slots: Slots, row: int, tokens: Tokens, start: int) -> Logits:
        """Append `tokens` (T,) to one row from position `start`; logits (T, V) after each of them."""
        (T,) = tokens.shape
        places = np.arange(T)[None]
        logits = self._run(slots, row, tokens[None], start + places, np.array([T]), places)
        self.told = {name: figure[0] for name, figure in self.told.items()}
        every: Logits = logits[0]
        return every

    def _run(
        self,
        slots: Slots,
        first: int,
        tokens: Tokens,
        positions: Tokens,
        lengths: Tokens,
        logits_at: Tokens,
    ) -> Logits:
        """One run over the rows from `first`: logits (B, K, V) at the places `logits_at` (B, K)."""
        B, K = logits_at.shape
        past = slots.rows(first, B)
        present = [
            array if self.is_fused or spec.kind == "kv" else np.empty_like(array)
            for spec, array in zip(self.specs, past, strict=True)
        ]
        binding = self._session.io_binding()
        inputs = {
            "input_ids": tokens,
            "positions": positions,
            "lengths": lengths,
            "logits_at": logits_at,
        }
        held = {name: np.ascontiguousarray(value, np.int64) for name, value in inputs.items()}
        held |= {spec.past: array for spec, array in zip(self.specs, past, strict=True)}
        for name, value in held.items():
            binding.bind_input(name, "cpu", 0, value.dtype, value.shape, value.ctypes.data)
        for spec, array in zip(self.specs, present, strict=True):
            binding.bind_output(spec.present, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        logits = np.empty((B, K, self._vocab_size), np.float32)
        self.told = {name: np.empty((B, K), np.float32) for name in self.figures}
        for name, output in {"logits": logits, **self.told}.items():
            binding.bind_output(name, "cpu", 0, output.dtype, output.shape, output.ctypes.data)
        self._session.run_with_iobinding(binding)
        for before, after in zip(past, present, strict=True):
            if before is not after:
                before[...] = after
        return logits

    def prefill(self, slots: Slots, row: int, tokens: Tokens, start: int = 0) -> Logits:
        """Append `tokens` (T,) to one row from position `start`; logits (V,)."""
        (T,) = tokens.shape
        row_logits: Logits = self.append(slots, row, tokens[None], np.arange(start, start + T)[None])[0]
        return row_logits

    def decode(self, slots: Slots, tokens: Tokens, positions: Tokens) -> Logits:
        """Append one token to each of the first rows: `tokens` (B,) at `positions` (B,); logits (B, V)."""
        return self.append(slots, 0, tokens[:, None], positions[:, None])

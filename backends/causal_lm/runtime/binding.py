"""The graph's tensors bound to memory of ours: ONNX Runtime reads and writes there, and copies nothing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.manifest import State

TOKEN_INPUTS = ("input_ids", "positions", "lengths", "logits_at")


def bind_states(binding: Any, states: Sequence[State], rows: Sequence[NDArray[Any]]) -> None:
    """States [B, *shape], each present one over its past."""
    for state, array in zip(states, rows, strict=True):
        bind_input(binding, state.past, array, array.shape)
        bind_output(binding, state.present, array)


def bind_tokens(
    binding: Any,
    tokens: NDArray[np.int64],
    positions: NDArray[np.int64],
    lengths: NDArray[np.int64],
    logits_at: NDArray[np.int64],
    shape: tuple[int, int],
) -> None:
    """The first B x T = `shape` of `tokens` and `positions`, `lengths` [B], `logits_at` [B, K]."""
    bind_input(binding, "input_ids", tokens, shape)
    bind_input(binding, "positions", positions, shape)
    bind_input(binding, "lengths", lengths, lengths.shape)
    bind_input(binding, "logits_at", logits_at, logits_at.shape)


def bind_told(
    binding: Any, names: Sequence[str], logits: NDArray[np.float32], figures: NDArray[np.float32]
) -> None:
    """Where logits [B, K, V] and the extra outputs [F, B, K] of these `names` go."""
    bind_output(binding, "logits", logits)
    for name, figure in zip(names, figures, strict=True):
        bind_output(binding, name, figure)


def bind_input(binding: Any, name: str, array: NDArray[Any], shape: tuple[int, ...]) -> None:
    """Let the session read the first elements of `array`, in this shape, where they lie."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, shape, array.ctypes.data)


def bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Let the session write into `array`."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

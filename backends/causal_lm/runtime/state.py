"""The state of every sequence: one pool per state tensor, a row per slot."""

import math
from collections.abc import Collection, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.manifest import State
from backends.causal_lm.runtime.memory import SlotMemory

Bytes = NDArray[np.uint8]


class StatePools:
    """Pools [slots, *shape], allocated once; the running sequences live in rows [0, n).

    The pages of a pool are real only once written, so a long context costs nothing until it is used.
    """

    def __init__(self, states: Sequence[State], slots: int) -> None:
        self.slots = slots
        self.states = tuple(states)
        self._memory = [SlotMemory(slots, state.shape, state.dtype) for state in states]
        self.pools: tuple[NDArray[Any], ...] = tuple(memory.array for memory in self._memory)

    @property
    def are_repeatable(self) -> bool:
        """Whether `repeated` can be had."""
        return all(memory.is_repeatable for memory in self._memory)

    def repeated(self, row: int, times: int) -> list[NDArray[Any]]:
        """A row of every pool, seen as [times, *shape] of the same memory."""
        return [memory.repeated(row, times) for memory in self._memory]

    def reset(self, row: int) -> None:
        """Make a row fit for a new sequence: a recurrent state starts at zero, `kv` is read by length."""
        for state, pool in zip(self.states, self.pools, strict=True):
            if state.kind == "recurrent":
                pool[row] = 0

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens from one row to another."""
        for state, pool in zip(self.states, self.pools, strict=True):
            if state.kind == "kv":
                pool[target, :, :length] = pool[source, :, :length]
            else:
                pool[target] = pool[source]

    def save(self, row: int, kinds: Collection[str], start: int, stop: int) -> Bytes:
        """A copy of a row's states of these `kinds`, one behind another: `kv` at positions [start, stop)."""
        views = list(self._views(row, kinds, start, stop))
        saved = np.empty(sum(view.nbytes for view in views), np.uint8)
        for view, part in _paired(views, saved):
            part[...] = view
        return saved

    def load(self, row: int, kinds: Collection[str], start: int, stop: int, saved: Bytes) -> None:
        """Write back what `save` gave for the same kinds and positions; ValueError for another size."""
        views = list(self._views(row, kinds, start, stop))
        size = sum(view.nbytes for view in views)
        if saved.nbytes != size:
            raise ValueError(f"a saved state has {saved.nbytes} bytes, {size} are needed")
        for view, part in _paired(views, saved):
            view[...] = part

    def _views(self, row: int, kinds: Collection[str], start: int, stop: int) -> Iterator[NDArray[Any]]:
        for state, pool in zip(self.states, self.pools, strict=True):
            if state.kind in kinds:
                yield pool[row, :, start:stop] if state.kind == "kv" else pool[row]


def bytes_of_states(states: Sequence[State], tokens: int) -> int:
    """What the states of a sequence of so many tokens take."""
    total = 0
    for state in states:
        shape = (state.shape[0], tokens, *state.shape[2:]) if state.kind == "kv" else state.shape
        total += math.prod(shape) * np.dtype(state.dtype).itemsize
    return total


def _paired(views: list[NDArray[Any]], saved: Bytes) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Each view with its part of the saved bytes."""
    offset = 0
    for view in views:
        part = saved[offset : offset + view.nbytes]
        offset += view.nbytes
        yield view, part.view(view.dtype).reshape(view.shape)

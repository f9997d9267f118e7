"""The state of every sequence: one pool per state tensor, a row per slot."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.manifest import State


class StatePools:
    """Pools [slots, *shape], allocated once; the running sequences live in rows [0, n).

    The pages of a pool are real only once written, so a long context costs nothing until it is used.
    """

    def __init__(self, states: Sequence[State], slots: int) -> None:
        self.slots = slots
        self.states = tuple(states)
        self.pools: tuple[NDArray[Any], ...] = tuple(np.zeros((slots, *s.shape), s.dtype) for s in states)

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

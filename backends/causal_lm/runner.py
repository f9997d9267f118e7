"""What the engine asks of a runtime: one graph, one set of state rows."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Runner(Protocol):
    """Runs prompts in one row, and one token in each of rows [0, n).

    The logits returned are a view that the next call overwrites, and so is what `figures` tells.
    """

    @property
    def figures(self) -> NDArray[np.float32]:
        """The manifest's extra outputs [slots, F] at the last token that each row was given."""
        ...

    def prefill(self, row: int, tokens: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        """Append `tokens` [T] at position `start` of `row`; logits [V] after the last one."""
        ...

    def decode(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        """Append token i at positions[i] of row i; logits [n, V]."""
        ...

    def reset(self, row: int) -> None:
        """Make `row` fit for a new sequence."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens from row `source` to row `target`."""
        ...

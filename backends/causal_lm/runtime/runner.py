"""What the engine asks of a runtime: one graph, one set of state rows."""

from collections.abc import Collection
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.runtime.state import Bytes

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class Runner(Protocol):
    """Runs prompts in one row, and one token in each of rows [0, n).

    The logits returned are a view that the next call overwrites, and so is what `figures` tells.
    """

    @property
    def figures(self) -> Floats:
        """The manifest's extra outputs [slots, F] at the last token that each row was given."""
        ...

    @property
    def most_verified(self) -> int:
        """How many tokens `verify` takes at most; 0 where the runtime can't, and is not asked to."""
        ...

    @property
    def decodes_as_it_reads(self) -> bool:
        """Whether `decode` leaves, to the bit, the states that `prefill` leaves of the same tokens."""
        ...

    def prefill(self, row: int, tokens: Tokens, start: int) -> Floats:
        """Append `tokens` [T] at position `start` of `row`; logits [V] after the last one."""
        ...

    def decode(self, tokens: Tokens, positions: Tokens) -> Floats:
        """Append token i at positions[i] of row i; logits [n, V]."""
        ...

    def verify(self, row: int, tokens: Tokens, start: int) -> tuple[Floats, Floats]:
        """Append `tokens` [T] at position `start` of `row`; logits [T, V] and figures [T, F] after each.

        Only of the first `speculative_streams` rows. The row is unfit for anything else until `keep` has said
        how many of them stay.
        """
        ...

    def keep(self, row: int, count: int) -> None:
        """Let the first `count` tokens (1 to T) of what `verify` has appended to `row` stay, and no other."""
        ...

    def reset(self, row: int) -> None:
        """Make `row` fit for a new sequence."""
        ...

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a sequence of `length` tokens from row `source` to row `target`."""
        ...

    def save(self, row: int, kinds: Collection[str], start: int, stop: int) -> Bytes:
        """A copy of a row's states of these `kinds`: `kv` at positions [start, stop)."""
        ...

    def load(self, row: int, kinds: Collection[str], start: int, stop: int, saved: Bytes) -> None:
        """Write back what `save` gave for the same kinds and positions; ValueError for another size."""
        ...

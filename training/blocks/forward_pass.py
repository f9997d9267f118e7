"""What one pass through the decoder shares between its layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from training.blocks.rotary import Rotary

if TYPE_CHECKING:
    from training.lowering import Lowering


class ForwardPass:
    """Where the tokens stand and how the blocks compute.

    `positions` (B, T); `lengths` (B,) valid tokens per row, None for all; `rotary` None if no layer rotates;
    `routing` collects each expert layer's router logits (B, T, E) when the caller gave a list. `extras`
    takes what the mixers say besides, (B, T) by name, when the caller gave a dict: the last layer's stands.
    """

    # No dataclass: FSDP makes those anew for each block, and the caller's list and dict would stay empty.
    def __init__(
        self,
        positions: Tensor,
        lengths: Tensor | None,
        rotary: Rotary | None,
        lowering: Lowering,
        routing: list[Tensor] | None = None,
        extras: dict[str, Tensor] | None = None,
    ) -> None:
        self.positions = positions
        self.lengths = lengths
        self.rotary = rotary
        self.lowering = lowering
        self.routing = routing
        self.extras = extras

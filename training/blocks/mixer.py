"""What every mixer is: the part of a layer that lets tokens see the tokens before them."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import Tensor, nn

from training.blocks.forward_pass import ForwardPass
from training.blocks.state import State, StateSpec


class Mixer(nn.Module, ABC):
    """Maps (B, T, C) to (B, T, C) and carries a state; a subclass is made from the ModelConfig alone.

    `extra_names` are the figures (B, T) that it leaves in a pass's `extras`, if they are asked for.
    """

    extra_names: ClassVar[tuple[str, ...]] = ()

    @abstractmethod
    def state_specs(self, layer: int) -> tuple[StateSpec, ...]:
        """The state tensors of this mixer in layer number `layer`."""

    @abstractmethod
    def forward(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        """Mix the tokens of `x`; state None is a full sequence from its start, and gives the empty state."""

"""A mixer's memory of the tokens before: the tensors it carries from one step to the next."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

State = tuple[Tensor, ...]


@dataclass(frozen=True)
class StateSpec:
    """One state tensor: what it is called in the graph and in the manifest, and its shape for one sequence.

    `kind` is `kv` for a cache whose axis 1 is the position, `recurrent` for a matrix of constant size.
    """

    layer: int
    name: str
    kind: Literal["kv", "recurrent"]
    shape: tuple[int, ...]
    dtype: str = "float32"

    @property
    def past(self) -> str:
        """The graph's input: the state before the new tokens."""
        return f"past.{self.layer:02d}.{self.name}"

    @property
    def present(self) -> str:
        """The graph's output: the state after them."""
        return f"present.{self.layer:02d}.{self.name}"

    def zeros(self, batch: int, device: torch.device) -> Tensor:
        """The state of `batch` sequences before their first token, (batch, *shape)."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return torch.zeros(batch, *self.shape, dtype=dtype, device=device)

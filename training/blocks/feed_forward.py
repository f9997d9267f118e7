"""The part of a layer that works on each token alone: MLP and SwiGLU."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from training.blocks.forward_pass import ForwardPass
from training.config import ModelConfig

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "silu": F.silu,
}


class MLP(nn.Module):
    """(…, C) -> (…, C) through one hidden layer of `d_ff`, as in GPT-2."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.activation = ACTIVATIONS[config.activation]
        self.up = nn.Linear(config.d_model, config.d_ff, bias=config.biases == "all")
        self.down = nn.Linear(config.d_ff, config.d_model, bias=config.biases == "all")

    def forward(self, x: Tensor, step: ForwardPass) -> Tensor:
        """down(activation(up(x)))."""
        y: Tensor = self.down(self.activation(self.up(x)))
        return y


class SwiGLU(nn.Module):
    """(…, C) -> (…, C) through a gated hidden layer, as in LLaMA. Source: arXiv 2002.05202."""

    def __init__(self, config: ModelConfig, *, num_parts: int = 1) -> None:
        super().__init__()
        width, has_bias = num_parts * config.d_ff, config.biases == "all"
        self.gate = nn.Linear(config.d_model, width, bias=has_bias)
        self.up = nn.Linear(config.d_model, width, bias=has_bias)
        self.down = nn.Linear(width, config.d_model, bias=has_bias)

    def forward(self, x: Tensor, step: ForwardPass) -> Tensor:
        """down(silu(gate(x)) ⊙ up(x))."""
        y: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return y

"""Gated ("adaptive") attention: each token says how much of every head it wants."""

from torch import Tensor, nn

from training.blocks.attention import Attention
from training.blocks.forward_pass import ForwardPass
from training.blocks.state import State
from training.config import ModelConfig


class GatedAttention(Attention):
    """Attention whose head outputs are scaled by g = σ(x Wgᵀ + bg), one number per token and head.

    Scaling what a head found equals scaling its row of attention weights. The state is attention's.
    Source: the head-wise gate after the attention of arXiv 2505.06708.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.gate = nn.Linear(config.d_model, config.num_heads)

    def forward(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        """y = concat(g ⊙ heads) Wo; see Mixer.forward."""
        o, state = self.attend_by_head(x, state, step)
        gate = self.gate(x).sigmoid().unsqueeze(-1)  # (B, T, H, 1)
        return self.out((gate * o).flatten(2)), state

"""One layer of the decoder, and the names under which its parts are chosen."""

from collections.abc import Callable

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from training.blocks.attention import Attention
from training.blocks.bayesian_attention import BayesianAttention
from training.blocks.feed_forward import MLP, SwiGLU
from training.blocks.forward_pass import ForwardPass
from training.blocks.gated_attention import GatedAttention
from training.blocks.mixer import Mixer
from training.blocks.moe import MoE
from training.blocks.norm import build_norm
from training.blocks.retention import Retention
from training.blocks.state import State
from training.config import FeedForwardName, MixerName, ModelConfig

MIXERS: dict[MixerName, Callable[[ModelConfig], Mixer]] = {
    "attention": Attention,
    "gated_attention": GatedAttention,
    "bayesian_attention": BayesianAttention,
    "retention": Retention,
}
FFNS: dict[FeedForwardName, Callable[[ModelConfig], nn.Module]] = {
    "mlp": MLP,
    "swiglu": SwiGLU,
    "moe": MoE,
}


class Block(nn.Module):
    """(B, T, C) -> (B, T, C): a mixer and a feed-forward network, each around the residual stream.

    With `recomputes` a full sequence's activations are not kept for the backward pass but computed again.
    """

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.is_pre_norm = config.norm_placement == "pre"
        self.recomputes = False
        self.mixer_norm = build_norm(config)
        self.mixer = MIXERS[config.mixers[layer]](config)
        self.ffn_norm = build_norm(config)
        self.ffn = FFNS[config.ffns[layer]](config)

    def forward(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        """Norms before the parts (`pre`) or after each addition (`post`)."""
        if not self.recomputes or state is not None:
            return self._forward(x, state, step)
        after: tuple[Tensor, State] = checkpoint(
            self._forward, x, None, step, use_reentrant=False, preserve_rng_state=False
        )
        return after

    def _forward(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        if self.is_pre_norm:
            mixed, state = self.mixer(self.mixer_norm(x), state, step)
            x = x + mixed
            return x + self.ffn(self.ffn_norm(x), step), state
        mixed, state = self.mixer(x, state, step)
        x = self.mixer_norm(x + mixed)
        return self.ffn_norm(x + self.ffn(x, step)), state

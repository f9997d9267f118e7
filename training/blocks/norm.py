"""Normalisation of the residual stream."""

from collections.abc import Callable

from torch import nn

from training.config import ModelConfig

NORMS: dict[str, Callable[[ModelConfig], nn.Module]] = {
    "layernorm": lambda config: nn.LayerNorm(
        config.d_model, eps=config.norm_eps, bias=config.biases == "all"
    ),
    "rmsnorm": lambda config: nn.RMSNorm(config.d_model, eps=config.norm_eps),
}


def build_norm(config: ModelConfig) -> nn.Module:
    """The norm over (…, C) that the config names."""
    return NORMS[config.norm](config)


def build_head_norm(config: ModelConfig) -> nn.Module:
    """The norm over each head's query or key (…, D), or what leaves them as they are."""
    return nn.RMSNorm(config.head_dim, eps=config.norm_eps) if config.qk_norm else nn.Identity()

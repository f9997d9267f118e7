"""Causal softmax attention with grouped key heads, over a full sequence or a cache of fixed length."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.blocks.forward_pass import ForwardPass
from training.blocks.mixer import Mixer
from training.blocks.norm import build_head_norm
from training.blocks.state import State, StateSpec
from training.config import ModelConfig


class Attention(Mixer):
    """Attention as in GPT-2, LLaMA, Mistral and Qwen; state: rotated keys and values, each (B, Hkv, S, D)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        qkv_bias, out_bias = config.biases != "none", config.biases in ("attention", "all")
        width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
        self.query = nn.Linear(config.d_model, width, bias=qkv_bias)
        self.key = nn.Linear(config.d_model, kv_width, bias=qkv_bias)
        self.value = nn.Linear(config.d_model, kv_width, bias=qkv_bias)
        self.out = nn.Linear(width, config.d_model, bias=out_bias)
        self.query_norm, self.key_norm = build_head_norm(config), build_head_norm(config)

    def state_specs(self, layer: int) -> tuple[StateSpec, ...]:
        """A key and a value cache of `max_length` positions."""
        shape = (self.config.num_kv_heads, self.config.max_length, self.config.head_dim)
        return StateSpec(layer, "key", "kv", shape), StateSpec(layer, "value", "kv", shape)

    def forward(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        """Attend to this and all earlier positions; see Mixer.forward."""
        o, state = self.attend_by_head(x, state, step)
        return self.out(o.flatten(2)), state

    def attend_by_head(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        """What each head finds, (B, T, H, D), before the heads are put together."""
        B, T, _ = x.shape
        D = self.config.head_dim
        return step.lowering.attention(
            self.query_norm(self.query(x).view(B, T, -1, D)),
            self.key_norm(self.key(x).view(B, T, -1, D)),
            self.value(x).view(B, T, -1, D),
            state=state,
            positions=step.positions,
            lengths=step.lengths,
            rotary=step.rotary if self.config.position == "rope" else None,
            scale=D**-0.5,
            window=self.config.sliding_window,
        )


def attend(q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, scale: float) -> Tensor:
    """Softmax attention, q (B, T, H, D) on k, v (B, Hkv, S, D) -> (B, T, H, D).

    `mask` (B, T, S) is true where a query may look; None is causal over a full sequence, S = T.
    """
    o = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k,
        v,
        attn_mask=None if mask is None else mask.unsqueeze(1),
        is_causal=mask is None,
        scale=scale,
        enable_gqa=True,
    )  # (B, H, T, D)
    return o.transpose(1, 2)


def visible(positions: Tensor, num_slots: int, window: int | None) -> Tensor:
    """Where queries at `positions` (B, T) may look among `num_slots` slots: (B, T, S), true for yes.

    A slot holds the token of that position; of those at or before its own a query sees the last `window`.
    """
    slots, own = torch.arange(num_slots, device=positions.device), positions.unsqueeze(-1)
    seen = slots <= own
    return seen if window is None else seen & (slots > own - window)


def write_cache(cache: Tensor, new: Tensor, *, positions: Tensor, lengths: Tensor | None) -> Tensor:
    """A copy of `cache` (B, Hkv, S, D) with `new` (B, T, Hkv, D) at `positions` (B, T).

    A row's tokens past `lengths` (B,) are not written.
    """
    B, H, S, D = cache.shape
    T = new.shape[1]
    if lengths is not None:
        valid = torch.arange(T, device=new.device) < lengths[:, None]  # (B, T)
        positions = torch.where(valid, positions, S)
    # The extra slot S takes what must not be written, so that no branch depends on the data.
    index = positions[:, None, :, None].expand(B, H, T, D)
    padded = F.pad(cache, (0, 0, 0, 1))
    return padded.scatter(2, index, new.transpose(1, 2).type_as(cache))[:, :, :S]

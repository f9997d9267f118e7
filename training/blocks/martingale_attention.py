"""Bidirectional attention averaged over orders, so that the order of exchangeable inputs matters less."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.blocks.rotary import Rotary, rotate


class MartingaleAwareAttention(nn.Module):
    """(1−w)·Attn(x; id) + w·mean_j Attn(x; π_j), with π_j permutations of the position ids.

    w = clamp(λ ln n / n, 0.01, 1) for n tokens. For encoders only: a causal model cannot permute its prefix.
    The mean over k orders spreads by 1/√k as much as one; that w follows ln n / n is a heuristic.
    Source: arXiv 2507.11768. `rotary` None is attention without positions, which has no order to average.
    """

    def __init__(self, d_model: int, num_heads: int, rotary: Rotary | None, *, strength: float = 1.0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.rotary = rotary
        self.strength = strength
        self.query, self.key, self.value, self.out = (
            nn.Linear(d_model, d_model, bias=False) for _ in range(4)
        )

    def forward(self, x: Tensor, orders: Tensor) -> Tensor:
        """x (B, T, C), `orders` (k, T) position ids, each a permutation -> (B, T, C)."""
        w, T = self.weight(x.shape[1]), x.shape[1]
        straight = self.attend(x, torch.arange(T, device=x.device))
        averaged = torch.stack([self.attend(x, order) for order in orders]).mean(dim=0)
        return (1 - w) * straight + w * averaged

    def weight(self, num_tokens: int) -> float:
        """w: how much the averaged orders count."""
        return min(1.0, max(0.01, self.strength * math.log(num_tokens) / num_tokens))

    def attend(self, x: Tensor, position_ids: Tensor) -> Tensor:
        """Every token sees every token; x (B, T, C) at `position_ids` (T,) -> (B, T, C)."""
        B, T, C = x.shape
        q, k, v = (
            project(x).view(B, T, self.num_heads, -1) for project in (self.query, self.key, self.value)
        )
        if self.rotary is not None:
            positions = position_ids.expand(B, T)
            q, k = rotate(q, positions, self.rotary), rotate(k, positions, self.rotary)
        o = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        y: Tensor = self.out(o.transpose(1, 2).reshape(B, T, C))
        return y


def random_orders(num_tokens: int, count: int, generator: torch.Generator) -> Tensor:
    """`count` permutations of 0 … num_tokens - 1, (count, num_tokens)."""
    return torch.rand(count, num_tokens, generator=generator).argsort(dim=-1)

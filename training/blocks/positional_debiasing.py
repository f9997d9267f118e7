"""Takes out of the stream what repeats with the position alone."""

import math

import torch
from torch import Tensor, nn

PERIOD, HARMONICS = 64, 8


class PositionalDebiasing(nn.Module):
    """x' = x − σ(x Wg) ⊙ B φ(t) with φ the cosines and sines of 2πht/64, h = 1 … 8; (B, T, C) -> (B, T, C).

    Source: arXiv 2507.11768, which found errors of rotary models to repeat with period 64.
    """

    waves: Tensor

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.gate = nn.Linear(d_model, d_model, bias=False)
        self.pattern = nn.Linear(2 * HARMONICS, d_model, bias=False)
        self.register_buffer("waves", harmonics().float(), persistent=False)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        """`positions` (B, T) count from 0."""
        waves = self.waves[positions % PERIOD].type_as(x)  # (B, T, 2·HARMONICS)
        y: Tensor = x - self.gate(x).sigmoid() * self.pattern(waves)
        return y


def harmonics() -> Tensor:
    """φ over one period in float64, (PERIOD, 2·HARMONICS): cosines, then sines."""
    steps = torch.arange(PERIOD, dtype=torch.float64, device="cpu")
    angles = torch.outer(steps, torch.arange(1, HARMONICS + 1, dtype=torch.float64, device="cpu"))
    angles = angles * (2 * math.pi / PERIOD)
    return torch.cat((angles.cos(), angles.sin()), dim=-1)

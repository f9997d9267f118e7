"""Rotary positions: each pair of channels is turned by an angle that grows with the position."""

import math

import torch
from torch import Tensor, nn

from training.config import RopeScaling


class Rotary(nn.Module):
    """The cosines and sines of every position: `cos` and `sin`, each (S, D/2). Source: arXiv 2104.09864.

    Channels are paired half-split, i with i + D/2. The angle of pair i at position n is n · theta^(-2i/D),
    unless `scaling` slows the pair.
    """

    cos: Tensor
    sin: Tensor

    def __init__(
        self, head_dim: int, max_length: int, theta: float, scaling: RopeScaling | None = None
    ) -> None:
        super().__init__()
        # Float64 before the cosine: at position 8192 a float32 angle is already wrong in the fourth digit.
        # The device is named because a checkpoint's weights are built on "meta", and these are not weights.
        speeds = theta ** -(torch.arange(0, head_dim, 2, dtype=torch.float64, device="cpu") / head_dim)
        positions = torch.arange(max_length, dtype=torch.float64, device="cpu")
        angles = torch.outer(
            positions, speeds if scaling is None else scale_speeds(speeds, scaling)
        )  # (S, D/2)
        self.register_buffer("cos", angles.cos().float(), persistent=False)
        self.register_buffer("sin", angles.sin().float(), persistent=False)


def scale_speeds(speeds: Tensor, scaling: RopeScaling) -> Tensor:
    """Radians per token of each pair (D/2,), slowed. Source: Llama 3.1's `apply_scaling`."""
    slowed = speeds / scaling.factor
    if scaling.kind == "linear":
        return slowed
    assert scaling.original_length is not None
    turns = scaling.original_length * speeds / (2 * math.pi)
    kept = ((turns - scaling.slow_turns) / (scaling.fast_turns - scaling.slow_turns)).clamp(0, 1)
    return torch.lerp(slowed, speeds, kept)


def rotate(x: Tensor, positions: Tensor, rotary: Rotary) -> Tensor:
    """Turn `x` (B, T, H, D) by its `positions` (B, T); computed in the tables' precision or better."""
    cos = rotary.cos[positions].unsqueeze(2)  # (B, T, 1, D/2)
    sin = rotary.sin[positions].unsqueeze(2)
    first, second = x.chunk(2, dim=-1)
    rotated = torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
    return rotated.type_as(x)  # (B, T, H, D)

"""What turns gradients into steps: AdamW, and the rate that it learns at."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from training.recipes import Recipe

BETAS = (0.9, 0.98)


def build_optimizer(recipe: Recipe, parameters: Sequence[nn.Parameter]) -> torch.optim.AdamW:
    """AdamW; norms and biases do not decay."""
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, fused=True)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of step number `step`, from 0: linear warm-up, then half a cosine down to zero at `recipe.steps`."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

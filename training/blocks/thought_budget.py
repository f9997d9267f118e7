"""How many tokens of reasoning a prompt is worth."""

import math

import torch
from torch import Tensor, nn

SHORTEST, LONGEST = 1, 512
SMALLEST_ENTROPY = 1e-6


class OptimalCoTLayer(nn.Module):
    """The budget k* = √(n α / (H (B0 − B))) · log2(1/ε) in tokens, clamped to 1 … 512.

    n is the number of tokens so far, H the entropy of the next one in nats. `alpha` is the price of being
    wrong against that of a token, `gap` = B0 − B what reasoning can save, `epsilon` the error to reach.
    Source: arXiv 2507.11768, whose later versions weaken the claim: a heuristic.
    """

    def __init__(self, *, alpha: float = 1.0, gap: float = 1.5, epsilon: float = 1e-6) -> None:
        super().__init__()
        self.scale = math.sqrt(alpha / gap) * math.log2(1 / epsilon)

    def forward(self, logits: Tensor, num_tokens: Tensor) -> Tensor:
        """Logits (…, V) of the next token after `num_tokens` (…) -> budget (…)."""
        return self.budget(entropy(logits), num_tokens)

    def budget(self, entropy: Tensor, num_tokens: Tensor) -> Tensor:
        """The formula on a known entropy in nats; none at all is worth the longest thought."""
        # The entropy of a certain token may be rounded to -0, and the root of minus infinity is no number.
        entropy = entropy.clamp(min=SMALLEST_ENTROPY)
        return (self.scale * (num_tokens / entropy).sqrt()).clamp(SHORTEST, LONGEST)


def entropy(logits: Tensor) -> Tensor:
    """−Σ p ln p of softmax(logits) in float32 or better, (…, V) -> (…)."""
    log_p = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)
    return -(log_p.exp() * log_p).sum(dim=-1)

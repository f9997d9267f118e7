"""Running counts and means of what a sequence showed so far, and the Beta belief that two counts make."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from training.blocks.forward_pass import ForwardPass

PRIOR = 0.5  # α0 = β0: Jeffreys' prior, with which the mean is Krichevsky and Trofimov's estimator


@dataclass(frozen=True)
class Belief:
    """A Beta distribution for each token, `alpha` and `beta` (B, T): evidence for and against."""

    alpha: Tensor
    beta: Tensor

    @property
    def mean(self) -> Tensor:
        """α / (α + β)."""
        return self.alpha / (self.alpha + self.beta)

    @property
    def variance(self) -> Tensor:
        """αβ / ((α + β)² (α + β + 1)): falls as evidence of either kind comes in."""
        total = self.alpha + self.beta
        return self.alpha * self.beta / (total.square() * (total + 1))


class SufficientStatsEncoder(nn.Module):
    """(B, T, C) -> (B, T, C) from prefix sums alone, so that the state is S numbers at every position.

    S/2 soft counts c = σ(Wc h), of which the first two are the belief's evidence, and S/2 features tanh(Wf h)
    whose means are moments. [moments, counts / t, ln α, ln β] are projected back.
    The sums are in float32 or better.
    Source: arXiv 2507.11768; that these statistics suffice for language is a heuristic.
    """

    def __init__(self, d_model: int, num_statistics: int) -> None:
        super().__init__()
        half = num_statistics // 2
        self.counts = nn.Linear(d_model, half, bias=False)
        self.features = nn.Linear(d_model, half, bias=False)
        self.out = nn.Linear(num_statistics + 2, d_model, bias=False)

    def forward(self, h: Tensor, sums: Tensor | None, step: ForwardPass) -> tuple[Tensor, Belief, Tensor]:
        """What the statistics add to the stream, the belief, and the sums (B, S) after the last valid token.

        `sums` (B, S) before the first token are None at the start of a sequence.
        """
        T = h.shape[1]
        terms = torch.cat((self.counts(h).sigmoid(), self.features(h).tanh()), dim=-1)
        terms = terms.to(torch.promote_types(h.dtype, torch.float32))  # (B, T, S)
        if step.lengths is not None:
            terms = terms * (torch.arange(T, device=h.device) < step.lengths[:, None]).unsqueeze(-1)
        totals = terms.cumsum(dim=1)
        if sums is not None:
            totals = totals + sums.unsqueeze(1).to(totals.dtype)
        belief = Belief(PRIOR + totals[..., 0], PRIOR + totals[..., 1])
        means = totals / (step.positions + 1).unsqueeze(-1)
        evidence = torch.stack((belief.alpha.log(), belief.beta.log()), dim=-1)  # (B, T, 2)
        y = self.out(torch.cat((means, evidence), dim=-1).type_as(h))
        return y, belief, totals[:, -1]

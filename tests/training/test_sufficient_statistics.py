"""The statistics and their belief: exact Bayes on coins, whatever the pieces the sequence comes in."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from training.blocks.forward_pass import ForwardPass
from training.blocks.sufficient_statistics import Belief, SufficientStatsEncoder
from training.lowering import Eager

C, S = 2, 4


def at(start: int, T: int, lengths: Tensor | None = None, B: int = 1) -> ForwardPass:
    return ForwardPass(torch.arange(start, start + T).expand(B, T), lengths, None, Eager())


def coin_encoder() -> SufficientStatsEncoder:
    """Counts heads (1, 0) for and tails (0, 1) against, exactly: σ(±800) is 1 and 0 in float64."""
    encoder = SufficientStatsEncoder(C, S).double().requires_grad_(False)
    encoder.counts.weight.copy_(torch.tensor([[800.0, -800.0], [-800.0, 800.0]]))
    return encoder


def belief_after(tosses: Tensor) -> Belief:
    """The belief after each toss; `tosses` (B, T) of ones and zeros."""
    h = torch.stack((tosses, 1 - tosses), dim=-1).double()
    _, belief, _ = coin_encoder()(h, None, at(0, tosses.shape[1], B=tosses.shape[0]))
    return belief


def test_on_coins_the_belief_is_krichevsky_trofimovs() -> None:
    tosses = torch.tensor([[1, 1, 0, 1, 0]])
    heads, n = tosses.cumsum(dim=1).double(), torch.arange(1, 6)
    expected = (heads + 0.5) / (n + 1)
    torch.testing.assert_close(belief_after(tosses).mean, expected, rtol=0, atol=1e-16)


def test_the_belief_is_a_martingale() -> None:
    """What one expects to believe after the next toss is what one believes now, for all sequences to 7."""
    for n in range(1, 8):
        tosses = torch.tensor(list(itertools.product((0, 1), repeat=n)))
        now = belief_after(tosses).mean[:, -1]
        heads, tails = (
            belief_after(torch.cat((tosses, torch.full((len(tosses), 1), x)), 1)).mean[:, -1] for x in (1, 0)
        )
        # one rounding each of two products and a sum
        torch.testing.assert_close(now * heads + (1 - now) * tails, now, rtol=0, atol=2.3e-16)


def test_the_redundancy_of_the_belief_is_that_of_jeffreys_prior() -> None:
    """Exact over all counts of heads at n = 1024 with a fair coin: ½ ln(nπ/2e) nats beyond the entropy."""
    n = 1024
    heads = torch.arange(n + 1)
    tosses = (torch.arange(n) < heads[:, None]).long()  # (n + 1, n); the order doesn't matter
    before = torch.cat((torch.full((n + 1, 1), 0.5), belief_after(tosses).mean[:, :-1]), dim=1)
    code = -torch.where(tosses == 1, before, 1 - before).log().sum(dim=1)
    size = torch.tensor(float(n + 1), dtype=torch.float64)
    counts = heads.double()
    log_ways = torch.lgamma(size) - torch.lgamma(counts + 1) - torch.lgamma(size - counts)
    likely = (log_ways - n * math.log(2)).exp()
    redundancy = float((likely * (code - n * math.log(2))).sum())
    assert 0.5 * math.log(n * math.pi / (2 * math.e)) == pytest.approx(3.1915, abs=5e-5)
    assert redundancy == pytest.approx(3.1915, abs=2e-3)  # terms of order 1/n


def test_the_beliefs_variance_falls_as_one_over_n() -> None:
    generator = torch.Generator().manual_seed(5)
    tosses = (torch.rand(64, 4096, generator=generator) < 0.3).long()
    n = torch.tensor([2**power for power in range(5, 13)])
    log_variance = belief_after(tosses).variance[:, n - 1].log().mean(dim=0)
    log_n = n.double().log()
    slope = ((log_n - log_n.mean()) * log_variance).sum() / (log_n - log_n.mean()).square().sum()
    assert float(slope) == pytest.approx(-1, abs=0.1)


def test_mean_and_variance_are_those_of_the_beta_distribution() -> None:
    alpha, beta = torch.tensor([[0.5, 3.0, 40.0]]), torch.tensor([[0.5, 7.0, 2.0]])
    theirs = torch.distributions.Beta(alpha, beta)
    torch.testing.assert_close(Belief(alpha, beta).mean, theirs.mean)
    torch.testing.assert_close(Belief(alpha, beta).variance, theirs.variance)


def test_the_statistics_equal_a_loop_over_the_definition() -> None:
    torch.manual_seed(0)
    B, T, wide, half = 2, 5, 6, 3
    encoder = SufficientStatsEncoder(wide, 2 * half).double()
    h = torch.randn(B, T, wide, dtype=torch.float64)
    y, belief, sums = encoder(h, None, at(0, T, B=B))
    for b in range(B):
        counts, features = torch.zeros(half).double(), torch.zeros(half).double()
        for t in range(T):
            counts = counts + 1 / (1 + torch.exp(-(encoder.counts.weight @ h[b, t])))
            features = features + torch.tanh(encoder.features.weight @ h[b, t])
            alpha, beta = 0.5 + counts[0], 0.5 + counts[1]
            told = torch.cat((counts / (t + 1), features / (t + 1), torch.stack((alpha.log(), beta.log()))))
            torch.testing.assert_close(y[b, t], encoder.out.weight @ told, rtol=0, atol=1e-13)
            torch.testing.assert_close(belief.mean[b, t], alpha / (alpha + beta), rtol=0, atol=1e-15)
        torch.testing.assert_close(sums[b], torch.cat((counts, features)), rtol=0, atol=1e-13)


def test_pieces_with_padding_give_what_the_whole_sequence_gives() -> None:
    torch.manual_seed(0)
    encoder = SufficientStatsEncoder(6, S).double()
    h = torch.randn(1, 9, 6, dtype=torch.float64)
    whole, belief, after = encoder(h, None, at(0, 9))
    first, _, sums = encoder(
        torch.cat((h[:, :4], 99 * torch.ones(1, 2, 6)), 1), None, at(0, 6, torch.tensor([4]))
    )
    second, later, last = encoder(h[:, 4:], sums, at(4, 5))
    torch.testing.assert_close(torch.cat((first[:, :4], second), dim=1), whole, rtol=0, atol=1e-13)
    torch.testing.assert_close(later.variance, belief.variance[:, 4:], rtol=0, atol=1e-15)
    torch.testing.assert_close(last, after, rtol=0, atol=1e-13)

"""Debiasing, averaged orders, the budget of thought and the description-length loss, each by its property."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.bayesian_loss import belief_loss, confidence_loss, mdl_regularized_loss
from training.blocks.martingale_attention import MartingaleAwareAttention, random_orders
from training.blocks.positional_debiasing import PositionalDebiasing
from training.blocks.rotary import Rotary
from training.blocks.thought_budget import OptimalCoTLayer, entropy

T, C = 8, 16


def test_debiasing_learns_to_take_out_a_tone_of_period_64_and_leaves_the_rest() -> None:
    """20 dB is a hundredth of the power; the rest is noise that no function of the position predicts."""
    n = torch.arange(512)
    phases = torch.rand(C, dtype=torch.float64) * 2 * math.pi
    tone = torch.cos(2 * math.pi * n[:, None] / 64 + phases)  # (n, C)
    noise = 0.3 * torch.randn(16, 512, C, dtype=torch.float64)
    layer, positions = PositionalDebiasing(C).double(), n.expand(16, -1)
    torch.nn.init.zeros_(layer.gate.weight)  # half open everywhere
    optimizer = torch.optim.Adam([layer.pattern.weight], lr=0.1)
    for _ in range(100):
        optimizer.zero_grad()
        layer(noise + tone, positions).square().mean().backward()
        optimizer.step()
    left = layer(noise + tone, positions).detach() - noise
    assert 10 * math.log10(float(left.square().mean() / tone.square().mean())) < -20
    assert 10 * math.log10(float(tone.square().mean())) > -4


def test_debiasing_subtracts_the_gated_pattern_of_eight_harmonics() -> None:
    layer = PositionalDebiasing(C).double()
    x, positions = torch.randn(1, 3, C, dtype=torch.float64), torch.tensor([[5, 6, 70]])
    actual = layer(x, positions)
    for place, t in enumerate((5, 6, 70)):
        angles = [2 * math.pi * h * t / 64 for h in range(1, 9)]
        phi = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles]).double()
        gate = 1 / (1 + torch.exp(-(layer.gate.weight @ x[0, place])))
        expected = x[0, place] - gate * (layer.pattern.weight @ phi)
        torch.testing.assert_close(actual[0, place], expected, rtol=0, atol=1e-6)  # float32 tables


def attention(*, rotary: bool, **settings: float) -> MartingaleAwareAttention:
    table = Rotary(C // 2, 64, 10_000.0) if rotary else None
    return MartingaleAwareAttention(C, 2, table, **settings).double().requires_grad_(False)


def random_x(B: int = 1) -> Tensor:
    return torch.randn(B, T, C, dtype=torch.float64)


def orders(count: int, seed: int = 1) -> Tensor:
    return random_orders(T, count, torch.Generator().manual_seed(seed))


def test_an_order_is_a_permutation() -> None:
    assert orders(50).sort(dim=-1).values.tolist() == [list(range(T))] * 50
    assert len({tuple(order) for order in orders(50).tolist()}) > 45


def test_attention_under_orders_is_the_weighted_mean_of_its_definition() -> None:
    block, x, drawn = attention(rotary=True, strength=0.7), random_x(2), orders(3)
    w = 0.7 * math.log(T) / T
    each = [block.attend(x, order) for order in drawn]
    expected = (1 - w) * block.attend(x, torch.arange(T)) + w * sum(each) / 3
    torch.testing.assert_close(block(x, drawn), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("strength", "n", "w"), [(1.0, 8, math.log(8) / 8), (9.0, 8, 1.0), (1.0, 2048, 0.01)]
)
def test_the_weight_of_the_orders_is_clamped(strength: float, n: int, w: float) -> None:
    assert attention(rotary=True, strength=strength).weight(n) == pytest.approx(w)


def test_permuted_rotary_positions_change_the_output() -> None:
    block, x = attention(rotary=True), random_x()
    straight = block.attend(x, torch.arange(T))
    assert all((block.attend(x, order) - straight).abs().max() > 1e-3 for order in orders(5))


def test_without_positions_the_order_of_the_input_does_not_matter() -> None:
    block, x = attention(rotary=False), random_x()
    outputs = []
    for order in orders(20):
        y = torch.empty_like(x)
        y[:, order] = block(x[:, order], orders(2))
        outputs.append(y)
    assert torch.stack(outputs).var(dim=0).max() <= 1e-14
    assert (outputs[0] - random_x()).abs().max() > 1e-3


def test_every_token_sees_every_token() -> None:
    block, x = attention(rotary=True), random_x()
    changed = x.clone()
    changed[:, -1] += 1
    assert ((block(changed, orders(2)) - block(x, orders(2))).abs().amax(dim=-1) > 1e-6).all()


def test_the_spread_over_orders_falls_as_the_root_of_their_number() -> None:
    block, x = attention(rotary=True), random_x()
    one_each = torch.stack([block.attend(x, order)[0, 0, 0] for order in orders(2048)])
    counts = torch.tensor([1, 2, 4, 8, 16])
    spreads = torch.stack([one_each.view(-1, int(k)).mean(dim=1).std() for k in counts]).log()
    log_k = counts.double().log()
    slope = ((log_k - log_k.mean()) * spreads).sum() / (log_k - log_k.mean()).square().sum()
    assert -0.6 <= float(slope) <= -0.4


@pytest.mark.parametrize(("n", "tokens"), [(64, 92), (512, 260), (0, 1), (10**6, 512)])
def test_the_budget_grows_with_the_root_of_the_prompt_between_its_bounds(n: int, tokens: int) -> None:
    budget = OptimalCoTLayer().budget(torch.tensor(2.0), torch.tensor(n))
    assert round(float(budget)) == tokens


def test_the_budget_is_taken_from_the_entropy_of_the_next_token() -> None:
    layer, logits = OptimalCoTLayer(), torch.randn(3, 50)
    theirs = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(entropy(logits), theirs)
    n = torch.tensor([10, 20, 30])
    expected = (n / (theirs * 1.5)).sqrt() * math.log2(1e6)
    torch.testing.assert_close(layer(logits, n), expected)


def test_certainty_is_no_division_by_zero() -> None:
    logits = torch.full((1, 4), -1e4).index_fill(1, torch.tensor([2]), 1e4)
    assert OptimalCoTLayer()(logits, torch.tensor([5])).tolist() == [512.0]


def mdl(logits: Tensor, targets: Tensor, coefficient: float, num_statistics: int = 2) -> Tensor:
    return mdl_regularized_loss(logits, targets, num_statistics=num_statistics, coefficient=coefficient)


def overconfident(n: int = 40) -> tuple[Tensor, Tensor]:
    """Sure of token 0, which is right half the time."""
    logits = torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64).repeat(n, 1).requires_grad_()
    return logits, torch.arange(n) % 2


def test_the_penalty_is_what_the_formula_says() -> None:
    logits, targets = overconfident()
    nll = F.cross_entropy(logits, targets, reduction="sum")
    h = torch.distributions.Categorical(logits=logits).entropy().sum()
    excess = nll - h - 0.5 * 2 * math.log(40)
    assert excess > 1
    torch.testing.assert_close(mdl(logits, targets, 0.3), (nll + 0.3 * excess) / 40)


def test_what_is_not_learned_does_not_count() -> None:
    logits, targets = overconfident()
    padded = torch.cat((logits, 7 * torch.randn(5, 3, dtype=torch.float64)))
    masked = torch.cat((targets, torch.full((5,), -100)))
    torch.testing.assert_close(mdl(padded, masked, 0.3), mdl(logits, targets, 0.3))


def test_within_the_code_of_its_statistics_a_model_pays_nothing() -> None:
    logits, targets = overconfident()
    plain = F.cross_entropy(logits, targets)
    torch.testing.assert_close(mdl(logits, targets, 5.0, num_statistics=100), plain)
    calibrated = torch.zeros(40, 2, dtype=torch.float64)
    torch.testing.assert_close(mdl(calibrated, targets, 5.0), F.cross_entropy(calibrated, targets))


def test_being_vague_is_no_way_out_of_the_penalty() -> None:
    """The entropy is detached: the gradient is that of the likelihood, only larger."""
    logits, targets = overconfident()
    (ours,) = torch.autograd.grad(mdl(logits, targets, 0.3), logits)
    (plain,) = torch.autograd.grad(F.cross_entropy(logits, targets), logits)
    torch.testing.assert_close(ours, 1.3 * plain)


def test_a_beliefs_loss_is_the_weighted_penalty_and_the_score_of_its_confidence() -> None:
    (logits, targets), confidence = overconfident(), torch.linspace(0.1, 0.9, 40, dtype=torch.float64)
    actual = belief_loss(logits, targets, confidence, num_statistics=2, coefficient=0.3)
    penalty = mdl(logits, targets, 0.3) - F.cross_entropy(logits, targets)
    torch.testing.assert_close(actual, penalty + confidence_loss(confidence, logits, targets))


def test_confidence_is_scored_by_whether_the_likeliest_token_is_right() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]]).requires_grad_()
    targets = torch.tensor([0, 0, -100])
    confidence = torch.tensor([0.9, 0.2, 0.5]).requires_grad_()
    loss = confidence_loss(confidence, logits, targets)
    assert loss.item() == pytest.approx(-(math.log(0.9) + math.log(0.8)) / 2)
    loss.backward()
    assert logits.grad is None
    assert confidence.grad is not None
    assert confidence.grad[0] < 0 < confidence.grad[1]
    assert confidence.grad[2] == 0

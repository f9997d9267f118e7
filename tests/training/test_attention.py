"""Attention and rotary positions against their definitions, in float64."""

import math

import pytest
import torch
from torch import Tensor

from training.blocks.attention import write_cache
from training.blocks.rotary import Rotary, rotate
from training.lowering import Eager

LENGTHS = (1, 7, 63)
B, H, HKV, D, S = 2, 4, 2, 8, 80


def random_inputs(T: int) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(
        torch.randn(B, T, heads, D, dtype=torch.float64, requires_grad=True) for heads in (H, HKV, HKV)
    )  # type: ignore[return-value]


def attention_by_definition(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    rows = []
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            for h in range(H):
                kv = h // (H // HKV)
                scores = (k[b, : n + 1, kv] @ q[b, n, h]) / math.sqrt(D)  # (n + 1,)
                weights = scores.exp() / scores.exp().sum()
                rows.append(weights @ v[b, : n + 1, kv])
    return torch.stack(rows).view(q.shape)


def attend_in_full(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    positions = torch.arange(q.shape[1]).expand(B, -1)
    o, state = Eager().attention(
        q, k, v, state=None, positions=positions, lengths=None, rotary=None, scale=D**-0.5
    )
    assert state == ()
    return o


def attend_in_two_steps(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    T, cut = q.shape[1], q.shape[1] // 2
    state: tuple[Tensor, ...] = tuple(torch.randn(B, HKV, S, D, dtype=torch.float64) for _ in range(2))
    outputs = []
    for start, end in ((0, cut), (cut, T)):
        piece = slice(start, end)
        positions = torch.arange(start, end).expand(B, -1)
        o, state = Eager().attention(
            q[:, piece],
            k[:, piece],
            v[:, piece],
            state=state,
            positions=positions,
            lengths=torch.full((B,), end - start),
            rotary=None,
            scale=D**-0.5,
        )
        outputs.append(o)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("form", [attend_in_full, attend_in_two_steps])
@pytest.mark.parametrize("T", LENGTHS)
def test_attention_and_its_gradients_equal_the_definition(form: object, T: int) -> None:
    """The cache begins with noise: what lies beyond a query's position must not count."""
    inputs = random_inputs(T)
    expected = attention_by_definition(*inputs)
    actual = form(*inputs)  # type: ignore[operator]
    weights = torch.randn_like(expected)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)  # float64 sums in another order
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_rotated_products_depend_only_on_the_distance() -> None:
    rotary = Rotary(D, 600, 10_000.0).double()
    q, k = torch.randn(2, 1, 1, 1, D, dtype=torch.float64).expand(-1, 1, 5, 1, D)
    starts = torch.tensor([[0, 1, 17, 300, 580]])
    products = (rotate(q, starts + 13, rotary) * rotate(k, starts, rotary)).sum(-1).flatten()
    # The tables are float32, so each cosine is off by up to 6e-8.
    torch.testing.assert_close(products, products[:1].expand(5), rtol=0, atol=1e-5)
    other = (rotate(q, starts + 14, rotary) * rotate(k, starts, rotary)).sum(-1).flatten()
    assert (other - products).abs().min() > 1e-3


def test_position_zero_is_not_rotated_and_lengths_are_kept() -> None:
    rotary = Rotary(D, 100, 10_000.0)
    x = torch.randn(1, 1, 3, D)
    assert torch.equal(rotate(x, torch.zeros(1, 1, dtype=torch.long), rotary), x)
    turned = rotate(x, torch.full((1, 1), 77), rotary)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-6, atol=0)


def test_a_rotation_turns_the_pair_i_and_i_plus_half_by_its_angle() -> None:
    rotary = Rotary(4, 10, 100.0)
    x = torch.tensor([1.0, 2.0, 0.0, 0.0]).view(1, 1, 1, 4)
    turned = rotate(x, torch.full((1, 1), 3), rotary).flatten()
    fast, slow = 3.0, 3.0 / 10  # theta^(-0/4), theta^(-2/4) radians a position
    expected = [math.cos(fast), 2 * math.cos(slow), math.sin(fast), 2 * math.sin(slow)]
    torch.testing.assert_close(turned, torch.tensor(expected))


def test_the_cache_takes_valid_tokens_only_and_keeps_the_rest() -> None:
    cache, new = torch.randn(2, HKV, 6, D), torch.randn(2, 3, HKV, D)
    positions = torch.tensor([[1, 2, 3], [3, 4, 5]])
    written = write_cache(cache, new, positions=positions, lengths=torch.tensor([3, 2]))
    expected = cache.clone()
    expected[0, :, 1:4] = new[0].transpose(0, 1)
    expected[1, :, 3:5] = new[1, :2].transpose(0, 1)
    assert torch.equal(written, expected)
    expected[1, :, 5] = new[1, 2]
    assert torch.equal(write_cache(cache, new, positions=positions, lengths=None), expected)

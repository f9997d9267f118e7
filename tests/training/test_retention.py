"""The three forms of retention are one function; the state carries it from any piece to the next."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor

from training.blocks.retention import (
    chunkwise,
    decay_rates,
    decay_scale,
    parallel,
    recurrent,
    state_after,
)
from training.decoder import Decoder
from training.lowering import Eager
from training.presets import PRESETS

Form = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor]]
B, H, DK, DV = 2, 3, 4, 6
CHUNKS = (1, 7, 16, 64)
FAST_FORMS: dict[str, Form] = {
    "parallel": parallel,
    **{f"chunkwise-{chunk}": partial(chunkwise, chunk=chunk) for chunk in CHUNKS},
}
GAMMA = decay_rates(H)


def random_inputs(T: int) -> list[Tensor]:
    shapes = ((B, T, H, DK), (B, T, H, DK), (B, T, H, DV), (B, H, DK, DV))
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def retention_by_definition(q: Tensor, k: Tensor, v: Tensor, state: Tensor) -> Tensor:
    """o_n = Σ_{m<=n} γ^(n-m) (q_n·k_m) v_m + γ^(n+1) q_n S, one sum at a time."""
    outputs = []
    for n in range(q.shape[1]):
        o = torch.einsum("bhk,bhkv->bhv", q[:, n], state) * (GAMMA ** (n + 1))[:, None]
        for m in range(n + 1):
            product = (q[:, n] * k[:, m]).sum(-1, keepdim=True)
            o = o + (GAMMA ** (n - m))[:, None] * product * v[:, m]
        outputs.append(o)
    return torch.stack(outputs, dim=1)


def test_the_recurrent_form_is_the_definition() -> None:
    q, k, v, state = random_inputs(9)
    o, _ = recurrent(q, k, v, GAMMA, state)
    torch.testing.assert_close(o, retention_by_definition(q, k, v, state), rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", FAST_FORMS)
@pytest.mark.parametrize("T", [1, 5, 7, 48, 63, 129])
def test_every_form_equals_the_recurrence_with_its_gradients(name: str, T: int) -> None:
    inputs = random_inputs(T)
    q, k, v, state = inputs
    expected = recurrent(q, k, v, GAMMA, state)
    actual = FAST_FORMS[name](q, k, v, GAMMA, state)
    weights = [torch.randn_like(tensor) for tensor in expected]
    for ours, theirs in zip(actual, expected, strict=True):
        # Relative to the largest value: a state over 129 tokens grows, and float64 keeps 16 digits of it.
        assert (ours - theirs).abs().max() <= 1e-12 * max(1, theirs.abs().max())
    for ours, theirs in zip(
        torch.autograd.grad(actual, inputs, weights),
        torch.autograd.grad(expected, inputs, weights),
        strict=True,
    ):
        assert (ours - theirs).abs().max() <= 1e-8


@pytest.mark.parametrize("name", ["recurrent", *FAST_FORMS])
def test_no_state_is_a_state_of_zeros(name: str) -> None:
    form = (FAST_FORMS | {"recurrent": recurrent})[name]
    q, k, v, state = random_inputs(20)
    for without, zeros in zip(
        form(q, k, v, GAMMA, None), form(q, k, v, GAMMA, torch.zeros_like(state)), strict=True
    ):
        torch.testing.assert_close(without, zeros, rtol=0, atol=1e-13)


def test_chunk_prefill_then_single_steps_equal_one_parallel_pass() -> None:
    q, k, v, _ = random_inputs(60)
    expected, last = parallel(q, k, v, GAMMA, None)
    o, state = chunkwise(q[:, :40], k[:, :40], v[:, :40], GAMMA, None, chunk=16)
    outputs = [o]
    for n in range(40, 60):
        o, state = parallel(q[:, n : n + 1], k[:, n : n + 1], v[:, n : n + 1], GAMMA, state)
        outputs.append(o)
    torch.testing.assert_close(torch.cat(outputs, dim=1), expected, rtol=0, atol=1e-11)
    torch.testing.assert_close(state, last, rtol=0, atol=1e-11)


@pytest.mark.parametrize("T", [5, 300])
def test_tokens_past_a_rows_length_do_not_touch_its_state(T: int) -> None:
    q, k, v, state = (tensor.detach() for tensor in random_inputs(T))
    lengths = torch.tensor([T, 3])
    o, (after,) = Eager().retention(q, k, v, log_gamma=GAMMA.log(), state=(state,), lengths=lengths)
    alone, state_alone = recurrent(q[1:, :3], k[1:, :3], v[1:, :3], GAMMA, state[1:])
    torch.testing.assert_close(after[1:], state_alone, rtol=0, atol=1e-11)
    torch.testing.assert_close(o[1:, :3], alone, rtol=0, atol=1e-11)
    torch.testing.assert_close(after[:1], recurrent(q, k, v, GAMMA, state)[1][:1], rtol=0, atol=1e-11)


def test_the_decay_of_each_head_is_exact() -> None:
    assert decay_rates(4).tolist() == [31 / 32, 63 / 64, 127 / 128, 255 / 256]


def test_spread_decays_remember_from_32_to_512_tokens_evenly_in_the_logarithm() -> None:
    memories = 1 / (1 - decay_rates(5, "spread"))
    torch.testing.assert_close(memories, 2.0 ** torch.arange(5, 10, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(decay_rates(1, "spread"), decay_rates(1), rtol=1e-12, atol=0)


def test_the_decay_scale_is_the_root_of_each_heads_summed_decays() -> None:
    positions = torch.tensor([[0, 1, 2], [7, 500, 4095]])
    actual = decay_scale(GAMMA.log(), positions)
    for row, column in ((0, 0), (0, 2), (1, 0), (1, 1), (1, 2)):
        total = sum(GAMMA**i for i in range(int(positions[row, column]) + 1))
        torch.testing.assert_close(actual[row, column], total**-0.5, rtol=1e-12, atol=0)


def test_half_precision_inputs_are_summed_in_float32() -> None:
    """A long sum of ones: bfloat16 stops counting at 256."""
    ones = torch.ones(1, 600, 1, 1, dtype=torch.bfloat16)
    gamma = torch.ones(1)
    o, state = chunkwise(ones, ones, ones, gamma, None)
    assert state.dtype == o.dtype == torch.float32
    assert state.item() == 600
    assert state_after(ones, ones, gamma, None).item() == 600


@pytest.mark.parametrize("is_scaled", [False, True])
def test_the_mixer_gates_and_normalises_each_head(is_scaled: bool) -> None:
    """The layer from its weights, with an explicit loop over tokens in float64."""
    config = PRESETS["retnet-moe-tiny"].model_copy(update={"retention_scaling": is_scaled})
    decoder = Decoder(config).double()
    mixer, rotary = decoder.layers[0].mixer, decoder.rotary
    x = torch.randn(1, 5, config.d_model, dtype=torch.float64)
    hidden: list[Tensor] = []
    handle = mixer.register_forward_hook(lambda module, args, out: hidden.extend((args[0], out[0])))
    decoder(torch.tensor([[1, 2, 3, 4, 5]]))
    handle.remove()
    x, actual = hidden
    q, k = (
        proj(x).view(1, 5, 2, 2, 16).unbind(3) for proj in (mixer.query, mixer.key)
    )  # halves of each head's channels
    cos, sin = rotary.cos[:5, None], rotary.sin[:5, None]
    q, k = (torch.cat((a * cos - b * sin, b * cos + a * sin), -1) for a, b in (q, k))
    v = mixer.value(x).view(1, 5, 2, 64)
    gamma = mixer.log_gamma.exp()
    state, outputs = torch.zeros(1, 2, 32, 64, dtype=torch.float64), []
    total = torch.zeros(2, 1, dtype=torch.float64)
    for n in range(5):
        state = gamma[:, None, None] * state + k[:, n, :, :, None] / 32**0.5 * v[:, n, :, None]
        o = torch.einsum("bhk,bhkv->bhv", q[:, n], state)
        total = gamma[:, None] * total + 1
        o = o / total.sqrt() if is_scaled else o
        o = o / (o.square().mean(-1, keepdim=True) + config.norm_eps).sqrt()
        gate = mixer.gate(x[:, n])
        outputs.append(mixer.out(gate * gate.sigmoid() * o.flatten(1)))
    torch.testing.assert_close(actual, torch.stack(outputs, 1), rtol=0, atol=1e-12)

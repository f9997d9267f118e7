"""Mixture of experts: the routing rule, the losses, and the loop against formulas that visit every expert."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor

from training.blocks.feed_forward import SwiGLU
from training.blocks.forward_pass import ForwardPass
from training.blocks.moe import MoE, apply_experts
from training.blocks.router import (
    balance_loss,
    choose_experts,
    describe_load,
    expert_load,
    summarize_routing,
    z_loss,
)
from training.config import ModelConfig
from training.decoder import Decoder
from training.lowering import Eager
from training.presets import PRESETS

N, C, E, F_ = 23, 32, 4, 48
STEP = ForwardPass(torch.zeros(1, 1), None, None, Eager())
TINY = PRESETS["retnet-moe-tiny"].model_dump()


def random_experts(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {"x": (N, C), "logits": (N, E), "gate_up": (E, 2 * F_, C), "down": (E, C, F_)}
    scales = {"x": 1.0, "logits": 2.0, "gate_up": C**-0.5, "down": F_**-0.5}
    return {
        name: (scales[name] * torch.randn(shape, dtype=dtype)).requires_grad_()
        for name, shape in shapes.items()
    }


def mixture_of_all(weights: Tensor, x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Every expert on every token, weighted (N, E); gate in the even rows, up in the odd."""
    gate = torch.einsum("nc,efc->nef", x, gate_up[:, 0::2])
    up = torch.einsum("nc,efc->nef", x, gate_up[:, 1::2])
    return torch.einsum("ne,nef,ecf->nc", weights, gate * gate.sigmoid() * up, down)


def dense(x: Tensor, logits: Tensor, *, gate_up: Tensor, down: Tensor, num_chosen: int) -> Tensor:
    probabilities = logits.exp() / logits.exp().sum(-1, keepdim=True)
    threshold = probabilities.sort(-1, descending=True).values[:, num_chosen - 1 : num_chosen]
    kept = torch.where(probabilities >= threshold, probabilities, 0)
    return mixture_of_all(kept / kept.sum(-1, keepdim=True), x, gate_up, down)


def moe_config(**changes: object) -> ModelConfig:
    return ModelConfig(**TINY | changes)


def initialised(config: ModelConfig) -> MoE:
    ffn = Decoder(config).layers[0].ffn
    assert isinstance(ffn, MoE)
    return ffn


@pytest.mark.parametrize("num_chosen", [1, 2, 3, E])
def test_the_loop_and_its_gradients_equal_the_dense_sum(num_chosen: int) -> None:
    inputs = random_experts()
    actual = apply_experts(**inputs, num_chosen=num_chosen)
    expected = dense(**inputs, num_chosen=num_chosen)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)  # float64, sums in another order
    weights = torch.randn_like(actual)
    for ours, theirs in zip(
        torch.autograd.grad(actual, list(inputs.values()), weights),
        torch.autograd.grad(expected, list(inputs.values()), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)


def test_all_experts_chosen_is_the_soft_mixture() -> None:
    inputs = random_experts()
    expected = mixture_of_all(inputs["logits"].softmax(-1), inputs["x"], inputs["gate_up"], inputs["down"])
    torch.testing.assert_close(apply_experts(**inputs, num_chosen=E), expected, rtol=0, atol=1e-12)


def test_one_expert_is_the_plain_swiglu() -> None:
    config = moe_config(num_experts=1, experts_per_token=1)
    moe, swiglu = initialised(config), SwiGLU(config)
    with torch.no_grad():
        swiglu.gate.weight.copy_(moe.gate_up[0, 0::2])
        swiglu.up.weight.copy_(moe.gate_up[0, 1::2])
        swiglu.down.weight.copy_(moe.down[0])
    x = torch.randn(2, 5, config.d_model)
    torch.testing.assert_close(moe(x, STEP), swiglu(x, STEP), rtol=0, atol=1e-5)


def test_a_shared_expert_is_added_for_every_token() -> None:
    moe = initialised(moe_config(num_shared_experts=2))
    assert moe.shared is not None
    assert moe.shared.gate.out_features == 2 * 64
    x = torch.randn(2, 5, 64)
    shared = moe.shared(x, STEP)
    assert shared.abs().max() > 1e-3
    both, moe.shared = moe(x, STEP), None
    torch.testing.assert_close(both, moe(x, STEP) + shared)


def test_permuting_the_tokens_permutes_the_output() -> None:
    inputs = random_experts()
    order = torch.randperm(N)
    shuffled = inputs | {"x": inputs["x"][order], "logits": inputs["logits"][order]}
    torch.testing.assert_close(
        apply_experts(**shuffled, num_chosen=2), apply_experts(**inputs, num_chosen=2)[order]
    )


def test_onnxruntime_reads_the_same_weights_and_computes_the_same() -> None:
    """The interleaved layout and the softmax are those of com.microsoft::MoE, with no weight rearranged."""
    inputs = {name: tensor.detach().numpy() for name, tensor in random_experts(torch.float32).items()}
    node = helper.make_node(
        "MoE",
        ["x", "logits", "gate_up", "", "down"],
        ["y"],
        domain="com.microsoft",
        k=2,
        activation_type="swiglu",
        swiglu_fusion=1,
        activation_alpha=1.0,
        activation_beta=0.0,
        normalize_routing_weights=1,
    )
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in inputs.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (N, C))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph([node], "moe", values, [output]), opset_imports=opsets, ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, inputs)
    expected = apply_experts(**{n: torch.from_numpy(a) for n, a in inputs.items()}, num_chosen=2)
    np.testing.assert_allclose(actual, expected.numpy(), rtol=0, atol=1e-5)  # float32 sums over 48 terms


def test_weights_are_normalised_over_the_chosen() -> None:
    weights, experts = choose_experts(torch.tensor([[0.0, math.log(3), math.log(6), -9.0]]), 2)
    assert experts.tolist() == [[2, 1]]
    torch.testing.assert_close(weights, torch.tensor([[2 / 3, 1 / 3]]))


def test_balance_loss_is_one_when_uniform() -> None:
    logits = 30.0 * F.one_hot(torch.arange(8 * E) % E, E)
    assert balance_loss(logits, 1).item() == pytest.approx(1, abs=1e-6)
    pairs = logits + 30.0 * F.one_hot((torch.arange(8 * E) + 1) % E, E)
    assert balance_loss(pairs, 2).item() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("num_chosen", [1, 2, 3])
def test_balance_loss_is_experts_over_chosen_when_collapsed(num_chosen: int) -> None:
    logits = torch.where(torch.arange(E) < num_chosen, 30.0, 0.0).expand(N, E)
    assert balance_loss(logits, num_chosen).item() == pytest.approx(E / num_chosen, abs=1e-6)
    assert expert_load(logits, num_chosen).tolist() == pytest.approx(
        [1 / num_chosen] * num_chosen + [0] * (E - num_chosen)
    )


def test_balance_loss_pushes_towards_the_unused_expert() -> None:
    logits = torch.tensor([2.0, 1.0, 0.0, -1.0]).repeat(N, 1).requires_grad_()
    (gradient,) = torch.autograd.grad(balance_loss(logits, 1), logits)
    assert (gradient[:, 0] > 0).all()
    assert (gradient[:, 1:] < 0).all()


def test_z_loss_is_the_mean_squared_logsumexp() -> None:
    logits = torch.log(torch.tensor([[1.0, 2.0, 3.0], [1.0, 1.0, 2.0]]))
    assert z_loss(logits).item() == pytest.approx((math.log(6) ** 2 + math.log(4) ** 2) / 2)


def test_routing_is_collected_only_when_asked_and_padding_does_not_count() -> None:
    config = moe_config(balance_coefficient=0.5, z_coefficient=0.25)
    decoder = Decoder(config)
    ids = torch.randint(0, config.vocab_size, (2, 6))
    routing: list[Tensor] = []
    decoder(ids, routing=routing)
    assert [tuple(logits.shape) for logits in routing] == [(2, 6, 4)] * config.num_layers
    valid = torch.arange(6) < torch.tensor([[6], [2]])
    summary = summarize_routing(config, routing, valid)
    counted = [torch.cat((logits[0], logits[1, :2])) for logits in routing]
    expected = sum(0.5 * balance_loss(z, 2) + 0.25 * z_loss(z) for z in counted) / len(counted)
    torch.testing.assert_close(summary.loss, expected)
    torch.testing.assert_close(summary.load, torch.stack([expert_load(z, 2) for z in counted]))
    assert not torch.equal(summary.load, summarize_routing(config, routing).load)


def test_summarizing_nothing_says_how_to_collect() -> None:
    with pytest.raises(ValueError, match="routing is empty: give it to Decoder"):
        summarize_routing(moe_config(), [])


def load_after_toy_run(balance_coefficient: float) -> Tensor:
    """Teach experts a random map from tokens that all point towards one of them at first."""
    moe = initialised(moe_config())
    x = torch.randn(1, 512, 64) + 1.5
    target = torch.randn(1, 512, 64)
    with torch.no_grad():
        moe.router.weight[0] += 0.05
    optimizer = torch.optim.Adam(moe.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=100)
    for _ in range(100):
        routing: list[Tensor] = []
        y = moe(x, ForwardPass(torch.zeros(1, 1), None, None, Eager(), routing))
        loss = F.mse_loss(y, target) + balance_coefficient * balance_loss(routing[0][0], 2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return expert_load(routing[0][0], 2)


def test_the_balance_loss_evens_the_load_of_a_toy_run() -> None:
    """The run without it shows that the task alone leaves experts unused."""
    assert describe_load(load_after_toy_run(0.5)).variation < 0.1
    assert describe_load(load_after_toy_run(0.0)).variation > 0.3


def test_load_figures_of_an_even_and_of_a_collapsed_load() -> None:
    even = describe_load(torch.full((4,), 0.25))
    assert (even.variation, even.max_violation, even.dead, even.entropy) == (0, 0, 0, pytest.approx(1))
    half = describe_load(torch.tensor([0.5, 0.5, 0.0, 0.0]))
    assert (half.variation, half.max_violation, half.dead, half.entropy) == (1, 1, 2, pytest.approx(0.5))

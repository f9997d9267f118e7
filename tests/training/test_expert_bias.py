"""Balancing by a bias: it decides who is chosen, never how much, and follows the load."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper
from torch import Tensor

from export.lowerings.tensorrt import TensorRT
from training.blocks.forward_pass import ForwardPass
from training.blocks.moe import MoE, apply_experts
from training.blocks.router import (
    bias_step,
    choose_by_bias,
    choose_experts,
    describe_load,
    expert_load,
    summarize_routing,
)
from training.chat import Conversation, ask
from training.checkpoint import load_model, save_model
from training.config import ModelConfig
from training.data.batches import PaddedBatches
from training.decoder import Decoder
from training.lowering import Eager
from training.presets import PRESETS
from training.recipes import recipe
from training.tokenizer import train_tokenizer
from training.trainer import Trainer

N, C, E, F_, K = 23, 32, 5, 48, 2
STEP = ForwardPass(torch.zeros(1, 1), None, None, Eager())
CONFIG = ModelConfig(**PRESETS["retnet-moe-tiny"].model_dump() | {"balancing": "bias"})


def random_experts(dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    shapes = {"x": (N, C), "logits": (N, E), "gate_up": (E, 2 * F_, C), "down": (E, C, F_)}
    scales = {"x": 1.0, "logits": 2.0, "gate_up": C**-0.5, "down": F_**-0.5}
    return {
        name: (scales[name] * torch.randn(shape, dtype=dtype)).requires_grad_()
        for name, shape in shapes.items()
    }


def experts_by_definition(bias: Tensor, x: Tensor, logits: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    rows = []
    for n in range(N):
        affinity = 1 / (1 + (-logits[n]).exp())
        chosen = (affinity + bias).argsort(descending=True)[:K].tolist()
        total = sum(affinity[e] for e in chosen)
        y = torch.zeros(C, dtype=x.dtype)
        for e in chosen:
            gate, up = gate_up[e, 0::2] @ x[n], gate_up[e, 1::2] @ x[n]
            y = y + affinity[e] / total * (down[e] @ (gate * gate.sigmoid() * up))
        rows.append(y)
    return torch.stack(rows)


def test_experts_are_chosen_with_the_bias_and_weighed_without_it() -> None:
    """Output and gradients, where the bias changes the choice for most tokens."""
    inputs, bias = random_experts(), torch.tensor([0.5, -0.5, 0.2, 0.0, -0.2], dtype=torch.float64)
    expected = experts_by_definition(bias, **inputs)
    routed = choose_by_bias(inputs["logits"], bias, K)
    actual = apply_experts(**inputs | {"logits": routed}, num_chosen=K)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)  # float64, sums in another order
    weights = torch.randn_like(actual)
    for ours, theirs in zip(
        torch.autograd.grad(actual, list(inputs.values()), weights),
        torch.autograd.grad(expected, list(inputs.values()), weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-11)
    unbiased = choose_by_bias(inputs["logits"], torch.zeros(E), K)
    assert (unbiased.isinf() != routed.isinf()).any(dim=-1).sum() > N / 4


def test_a_bias_forces_any_pair_of_experts_and_leaves_their_weights() -> None:
    logits = torch.randn(N, E, dtype=torch.float64)
    for pair in ([0, 1], [1, 4], [2, 3]):
        bias = torch.zeros(E).index_fill(0, torch.tensor(pair), 2.0)
        weights, experts = choose_experts(choose_by_bias(logits, bias, K), K)
        assert experts.sort(dim=-1).values.tolist() == [pair] * N
        affinity = logits.sigmoid().gather(1, experts)
        torch.testing.assert_close(weights, affinity / affinity.sum(-1, keepdim=True))


def test_a_step_raises_the_bias_of_the_underused_and_lowers_that_of_the_overused() -> None:
    step = bias_step(torch.tensor([0.5, 0.25, 0.125, 0.125]), 0.01)
    assert step.tolist() == pytest.approx([-0.01, 0.0, 0.01, 0.01])


@pytest.mark.parametrize("lowering", [Eager(), TensorRT()])
def test_every_lowering_takes_the_chosen_logits_as_they_are(lowering: Eager | TensorRT) -> None:
    inputs = random_experts()
    bias = torch.linspace(-1, 1, E)
    inputs["logits"] = choose_by_bias(inputs["logits"], bias, K)
    expected = apply_experts(**inputs, num_chosen=K)
    torch.testing.assert_close(lowering.experts(**inputs, num_chosen=K), expected, rtol=0, atol=1e-12)


def test_onnxruntimes_fused_experts_weigh_by_the_affinities() -> None:
    """MoE knows neither σ nor a bias; its softmax over ln σ of the chosen gives exactly these weights."""
    inputs = random_experts(torch.float32)
    inputs["logits"] = choose_by_bias(inputs["logits"], torch.linspace(-1, 1, E), K)
    arrays = {name: tensor.detach().numpy() for name, tensor in inputs.items()}
    settings = {"activation_alpha": 1.0, "activation_beta": 0.0, "activation_type": "swiglu"}
    node = helper.make_node(
        "MoE",
        ["x", "logits", "gate_up", "", "down"],
        ["y"],
        domain="com.microsoft",
        k=K,
        swiglu_fusion=1,
        normalize_routing_weights=1,
        **settings,
    )
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, a.shape) for n, a in arrays.items()]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, (N, C))
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model: onnx.ModelProto = helper.make_model(
        helper.make_graph([node], "moe", values, [output]), opset_imports=opsets, ir_version=10
    )
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, arrays)
    expected = apply_experts(**inputs, num_chosen=K).detach().numpy()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-5)  # float32 sums over 48 terms


def initialised() -> MoE:
    ffn = Decoder(CONFIG).layers[0].ffn
    assert isinstance(ffn, MoE)
    return ffn


def load_after_toy_run(rate: float) -> Tensor:
    """Teach experts a random map from tokens that all point towards one of them at first."""
    moe = initialised()
    moe.bias_rate = rate
    x, target = torch.randn(1, 512, 64) + 1.5, torch.randn(1, 512, 64)
    with torch.no_grad():
        moe.router.weight[0] += 0.05
    optimizer = torch.optim.Adam(moe.parameters(), lr=1e-3)
    loads = []
    for _ in range(150):
        routing: list[Tensor] = []
        y = moe(x, ForwardPass(torch.zeros(1, 1), None, None, Eager(), routing))
        optimizer.zero_grad()
        F.mse_loss(y, target).backward()
        optimizer.step()
        loads.append(expert_load(routing[0][0], 2))
        moe.balance(loads[-1])
    return torch.stack(loads[-20:]).mean(dim=0)


def test_the_bias_alone_evens_the_load_of_a_toy_run() -> None:
    """The run that hardly moves it shows that the task alone leaves experts unused."""
    assert describe_load(load_after_toy_run(0.02)).variation < 0.1
    assert describe_load(load_after_toy_run(1e-6)).variation > 0.3


def test_bias_balancing_adds_no_loss_and_still_reports_the_load() -> None:
    decoder = Decoder(CONFIG)
    routing: list[Tensor] = []
    decoder(torch.randint(0, 256, (2, 16)), routing=routing)
    summary = summarize_routing(CONFIG, routing)
    assert summary.loss == 0
    torch.testing.assert_close(summary.load, torch.stack([expert_load(z.flatten(0, 1), 2) for z in routing]))


def test_the_bias_is_saved_and_loaded_with_the_model(tmp_path: Path) -> None:
    decoder = Decoder(CONFIG)
    decoder.balance_experts(torch.tensor([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.1, 0.7]]))
    save_model(tmp_path / "model", decoder)
    loaded = load_model(tmp_path / "model")
    signs = [block.ffn.selection_bias.sign().tolist() for block in loaded.layers]
    assert signs == [[-1, 1, 1, 1], [1, 1, 1, -1]]


class Counting:
    def conversation(self, index: int) -> Conversation:
        return Conversation(ask(f"number {index}", "one two three"))


def trainer() -> Trainer:
    torch.manual_seed(3)
    tokenizer = train_tokenizer(["one two three number"], vocab_size=280)
    model = CONFIG.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
    known = recipe("retnet-moe-tiny").model_copy(update={"model": model})
    batches = PaddedBatches(Counting(), tokenizer, batch_size=2, seed=0)
    return Trainer(known, Decoder(model), batches, [])


def test_training_moves_the_bias_and_a_resumed_run_goes_on_with_it() -> None:
    whole, first, second = trainer(), trainer(), trainer()
    for _ in range(3):
        whole.train_step()
    first.train_step()
    second.restore(1, {name: tensor.clone() for name, tensor in first.tensors().items()})
    for _ in range(2):
        second.train_step()
    biases = [block.ffn.selection_bias for block in whole.decoder.layers]
    assert all(bias.any() for bias in biases)
    assert all(bias.abs().max() <= 3 * CONFIG.bias_rate * 1.001 for bias in biases)
    for name, tensor in whole.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name

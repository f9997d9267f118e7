"""Gated attention against its definition, and at both ends of its gate."""

import math

import pytest
import torch
from torch import Tensor

from training.blocks.attention import Attention
from training.blocks.forward_pass import ForwardPass
from training.blocks.gated_attention import GatedAttention
from training.config import ModelConfig
from training.lowering import Eager
from training.presets import PRESETS

B, T, C, H, D = 3, 5, 12, 4, 6
CONFIG = ModelConfig(
    **PRESETS["arslm-tiny"].model_dump()
    | {"d_model": C, "num_heads": H, "num_kv_heads": H, "head_dim": D, "max_length": 8}
)
STEP = ForwardPass(torch.arange(T).expand(B, T), None, None, Eager())


@pytest.fixture
def gated() -> GatedAttention:
    return GatedAttention(CONFIG).double()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(B, T, C, dtype=torch.float64)


def gated_attention_by_definition(block: GatedAttention, x: Tensor) -> Tensor:
    """Every token, head and earlier token in a loop: the gate scales the head's row of attention weights."""
    y = torch.zeros_like(x)
    for b in range(B):
        for t in range(T):
            heads = []
            for h in range(H):
                rows = slice(h * D, (h + 1) * D)
                q = block.query.weight[rows] @ x[b, t] + block.query.bias[rows]
                keys = [block.key.weight[rows] @ x[b, i] + block.key.bias[rows] for i in range(t + 1)]
                values = [block.value.weight[rows] @ x[b, i] + block.value.bias[rows] for i in range(t + 1)]
                scores = torch.stack([q @ k / math.sqrt(D) for k in keys]).exp()
                gate = 1 / (1 + torch.exp(-(block.gate.weight[h] @ x[b, t] + block.gate.bias[h])))
                heads.append(sum(gate * s / scores.sum() * v for s, v in zip(scores, values, strict=True)))
            y[b, t] = block.out.weight @ torch.cat(heads) + block.out.bias
    return y


def test_gated_attention_equals_a_loop_over_tokens_and_heads(gated: GatedAttention, x: Tensor) -> None:
    """B, T and H all differ, so that no axis can stand for another."""
    for parameter in gated.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    actual, state = gated(x, None, STEP)
    assert state == ()
    # float64, sums in another order
    torch.testing.assert_close(actual, gated_attention_by_definition(gated, x), rtol=0, atol=1e-10)


def test_an_open_gate_is_plain_attention(gated: GatedAttention, x: Tensor) -> None:
    """σ(30) is 1 - 1e-13."""
    plain = Attention(CONFIG).double()
    plain.load_state_dict({n: w for n, w in gated.state_dict().items() if not n.startswith("gate")})
    with torch.no_grad():
        gated.gate.bias.fill_(30)
    torch.testing.assert_close(gated(x, None, STEP)[0], plain(x, None, STEP)[0], rtol=0, atol=1e-6)


def test_a_closed_gate_leaves_only_the_output_bias(gated: GatedAttention, x: Tensor) -> None:
    with torch.no_grad():
        gated.gate.bias.fill_(-30)
        gated.out.bias.normal_()
    expected = gated.out.bias.expand(B, T, C)
    torch.testing.assert_close(gated(x, None, STEP)[0], expected, rtol=0, atol=1e-6)


def test_the_gate_has_a_bias_whatever_the_other_layers_have() -> None:
    block = GatedAttention(CONFIG.model_copy(update={"biases": "none"}))
    assert block.gate.bias.shape == (H,)
    assert block.query.bias is None

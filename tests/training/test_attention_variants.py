"""What Mistral, Qwen 3 and Llama 3 add to attention: a window, norms of query and key, scaled rotation."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from training.blocks.attention import Attention
from training.blocks.rotary import Rotary, scale_speeds
from training.config import ModelConfig, RopeScaling
from training.decoder import Decoder
from training.lowering import Eager

B, H, HKV, D = 2, 4, 2, 8
SIZES: dict[str, Any] = {
    "vocab_size": 64,
    "max_length": 64,
    "d_model": 32,
    "num_layers": 2,
    "num_heads": H,
    "num_kv_heads": HKV,
    "head_dim": D,
    "d_ff": 48,
    "mixer": "attention",
    "ffn": "swiglu",
}


def windowed_by_definition(q: Tensor, k: Tensor, v: Tensor, window: int) -> Tensor:
    rows = []
    for b in range(q.shape[0]):
        for n in range(q.shape[1]):
            first = max(0, n - window + 1)
            for h in range(H):
                kv = h // (H // HKV)
                weights = ((k[b, first : n + 1, kv] @ q[b, n, h]) / math.sqrt(D)).softmax(dim=0)
                rows.append(weights @ v[b, first : n + 1, kv])
    return torch.stack(rows).view(q.shape)


@pytest.mark.parametrize("T", [1, 7, 63])
@pytest.mark.parametrize("window", [1, 5, 100])
def test_a_token_sees_itself_and_what_the_window_reaches(T: int, window: int) -> None:
    q, k, v = (
        torch.randn(B, T, heads, D, dtype=torch.float64, requires_grad=True) for heads in (H, HKV, HKV)
    )
    o, _ = Eager().attention(
        q,
        k,
        v,
        state=None,
        positions=torch.arange(T).expand(B, T),
        lengths=None,
        rotary=None,
        scale=D**-0.5,
        window=window,
    )
    expected = windowed_by_definition(q, k, v, window)
    torch.testing.assert_close(o, expected, rtol=0, atol=1e-12)
    noise = torch.randn_like(o)
    ours, theirs = (torch.autograd.grad(out, (q, k, v), noise) for out in (o, expected))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"sliding_window": 5},
        {"qk_norm": True},
        {"rope_scaling": {"kind": "llama3", "factor": 4.0, "original_length": 16}},
        {"biases": "attention"},
    ],
    ids=lambda settings: next(iter(settings)),
)
def test_cached_steps_equal_the_full_sequence(settings: dict[str, Any]) -> None:
    decoder = Decoder(ModelConfig(**SIZES | settings)).double()
    ids = torch.randint(0, 64, (B, 24))
    full, _ = decoder(ids)
    state = tuple(tensor.double() for tensor in decoder.init_state(B))
    for start, end in ((0, 7), (7, 8), (8, 24)):
        positions = torch.arange(start, end).expand(B, -1)
        logits, state = decoder(ids[:, start:end], positions=positions, state=state)
        # Float64 throughout but for the rotary tables, which both share.
        torch.testing.assert_close(logits, full[:, end - 1], rtol=0, atol=1e-12)


def test_query_and_key_are_normalised_over_each_head() -> None:
    attention = Attention(ModelConfig(**SIZES, qk_norm=True))
    assert attention.query_norm.weight.shape == attention.key_norm.weight.shape == (D,)
    q = 100 * torch.randn(1, 3, H, D)
    torch.testing.assert_close(attention.query_norm(q).square().mean(-1), torch.ones(1, 3, H))


def test_biases_of_attention_leave_the_feed_forward_network_without() -> None:
    names = set(Decoder(ModelConfig(**SIZES, biases="attention")).state_dict())
    assert {name for name in names if name.endswith("bias")} == {
        f"layers.{layer}.mixer.{part}.bias" for layer in range(2) for part in ("query", "key", "value", "out")
    }


@pytest.mark.parametrize(
    ("scaling", "theirs"),
    [
        (RopeScaling(kind="linear", factor=3.5), {"rope_type": "linear", "factor": 3.5}),
        (
            RopeScaling(kind="llama3", factor=8, original_length=8192),
            {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
        ),
        (
            RopeScaling(kind="llama3", factor=32, original_length=4096, slow_turns=2, fast_turns=9),
            {
                "rope_type": "llama3",
                "factor": 32.0,
                "low_freq_factor": 2.0,
                "high_freq_factor": 9.0,
                "original_max_position_embeddings": 4096,
            },
        ),
    ],
)
@pytest.mark.parametrize("head_dim", [64, 128])
def test_scaled_rotation_equals_that_of_transformers(
    scaling: RopeScaling, theirs: dict[str, Any], head_dim: int
) -> None:
    config = LlamaConfig(
        head_dim=head_dim,
        max_position_embeddings=131072,
        rope_parameters=theirs | {"rope_theta": 500_000.0},
    )
    expected, _ = ROPE_INIT_FUNCTIONS[theirs["rope_type"]](config, torch.device("cpu"))
    speeds = 500_000.0 ** -(torch.arange(0, head_dim, 2, dtype=torch.float64) / head_dim)
    # Theirs is computed in float32: a few ulps of 6e-8.
    torch.testing.assert_close(scale_speeds(speeds, scaling).float(), expected, rtol=1e-6, atol=0)
    tables = Rotary(head_dim, 32, 500_000.0, scaling)
    angles = torch.outer(torch.arange(32.0), expected)
    torch.testing.assert_close(tables.cos, angles.cos(), rtol=0, atol=1e-5)

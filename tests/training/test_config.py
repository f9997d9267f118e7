"""The configuration: what it accepts, what it refuses, and that it survives its file."""

from typing import Any, get_args

import pytest
from pydantic import ValidationError

from training.blocks.block import FFNS, MIXERS
from training.blocks.feed_forward import ACTIVATIONS
from training.blocks.norm import NORMS
from training.config import FeedForwardName, MixerName, ModelConfig
from training.presets import PRESETS

LLAMA = PRESETS["llama-tiny"].model_dump()
RETNET = PRESETS["retnet-moe-tiny"].model_dump()


def test_a_config_survives_its_json() -> None:
    config = ModelConfig(**LLAMA | {"mixer": ("attention", "retention"), "value_dim": 64})
    assert ModelConfig.model_validate_json(config.model_dump_json()) == config


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        PRESETS["atlas"].d_model = 1  # type: ignore[misc]


def test_one_name_stands_for_every_layer() -> None:
    config = ModelConfig(**LLAMA)
    assert config.mixers == ("attention", "attention")
    assert config.ffns == ("swiglu", "swiglu")


@pytest.mark.parametrize(
    ("base", "changes", "message"),
    [
        (LLAMA, {"mixer": "mamba"}, "'attention', 'gated_attention', 'bayesian_attention' or 'retention'"),
        (LLAMA, {"mixer": ("attention",)}, "mixer names 1 layers, but num_layers is 2"),
        (LLAMA, {"ffn": ("swiglu",) * 3}, "ffn names 3 layers, but num_layers is 2"),
        (LLAMA, {"num_kv_heads": 3}, "num_kv_heads is 3, which does not divide num_heads 4"),
        (LLAMA, {"head_dim": 31}, "head_dim is 31, but rotation needs an even number"),
        (LLAMA, {"mixer": "retention"}, "value_dim is missing.*2 \\* head_dim = 64"),
        (LLAMA, {"num_experts": 4}, "num_experts 4.*no layer's ffn is 'moe'"),
        (LLAMA, {"mixer": "bayesian_attention"}, "num_statistics is 0.*an even number from 4 on"),
        (LLAMA, {"mixer": "bayesian_attention", "num_statistics": 7}, "num_statistics is 7.*an even number"),
        (LLAMA, {"num_statistics": 8}, "num_statistics is 8, but no layer's mixer is 'bayesian_attention'"),
        (LLAMA, {"balancing": "bias"}, "balancing 'bias', but no layer's ffn is 'moe'"),
        (RETNET, {"balancing": "auction"}, "'loss' or 'bias'"),
        (RETNET, {"experts_per_token": 5}, "experts_per_token 5.*1 <= experts_per_token <= num_experts"),
        (RETNET, {"experts_per_token": 0}, "experts_per_token 0.*1 <= experts_per_token <= num_experts"),
        (LLAMA, {"rope_scaling": {"kind": "yarn", "factor": 2}}, "'linear' or 'llama3'"),
        (LLAMA, {"rope_scaling": {"kind": "linear", "factor": 0.5}}, "greater than or equal to 1"),
        (LLAMA, {"rope_scaling": {"kind": "llama3", "factor": 8}}, "original_length is missing"),
        (
            LLAMA,
            {"rope_scaling": {"kind": "linear", "factor": 2, "slow_turns": 4}},
            "slow_turns 4.0 and fast_turns 4.0: the first must be smaller",
        ),
        (
            LLAMA,
            {"position": "none", "rope_scaling": {"kind": "linear", "factor": 2}},
            "rope_scaling is given, but position is 'none'",
        ),
        (LLAMA, {"sliding_window": 0}, "greater than 0"),
        (RETNET, {"sliding_window": 8}, "sliding_window is given, but no layer's mixer is an attention"),
        (RETNET, {"qk_norm": True}, "qk_norm is given, but no layer's mixer is an attention"),
        (LLAMA, {"decays": "spread"}, "decays is given, but no layer's mixer is 'retention'"),
        (
            LLAMA,
            {"retention_scaling": True},
            "retention_scaling is given, but no layer's mixer is",
        ),
        (RETNET, {"decays": "even"}, "'doubling' or 'spread'"),
        (LLAMA, {"embedding_scale": 0}, "greater than 0"),
        (LLAMA, {"embedding_scale": float("inf")}, "finite"),
        (LLAMA, {"vocab_size": 0}, "greater than 0"),
        (LLAMA, {"num_layers": 101}, "less than or equal to 100"),
        (LLAMA, {"format": "other/1"}, "trident-checkpoint/1"),
        (LLAMA, {"dropout": 0.1}, "dropout"),
    ],
)
def test_a_wrong_value_is_refused_with_what_is_allowed(
    base: dict[str, Any], changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValidationError, match=message):
        ModelConfig(**base | changes)


def test_every_name_the_config_allows_has_its_block() -> None:
    fields = ModelConfig.model_fields
    assert set(MIXERS) == set(get_args(MixerName))
    assert set(FFNS) == set(get_args(FeedForwardName))
    assert set(NORMS) == set(get_args(fields["norm"].annotation))
    assert set(ACTIVATIONS) == set(get_args(fields["activation"].annotation))


def test_only_an_odd_head_without_rotation_is_allowed() -> None:
    assert not ModelConfig(**LLAMA | {"head_dim": 31, "position": "learned"}).needs_rotary

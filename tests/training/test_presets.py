"""The named configurations."""

import pytest
import torch
import transformers

from training.decoder import Decoder
from training.presets import PRESETS, preset

SMALL = [name for name in PRESETS if name == "atlas" or name.endswith("-tiny")]


def num_parameters(name: str) -> int:
    with torch.device("meta"):
        return Decoder(preset(name)).num_parameters()


@pytest.mark.parametrize("name", SMALL)
def test_every_small_preset_builds_and_gives_finite_logits(name: str) -> None:
    decoder = Decoder(preset(name))
    logits, _ = decoder(torch.arange(8)[None])
    assert logits.shape == (1, 8, decoder.config.vocab_size)
    assert logits.isfinite().all()


def test_atlas_is_a_small_retention_and_expert_model() -> None:
    config = preset("atlas")
    assert set(config.mixers) == {"retention"}
    assert set(config.ffns) == {"moe"}
    assert 2e6 <= Decoder(config).num_parameters() <= 4e6


def test_arslm_base_has_the_parameters_of_its_tensors_added_up() -> None:
    """Embeddings, head with bias; per layer four projections, the gate, the MLP and two norms."""
    layer = 4 * (512 * 512 + 512) + (512 * 8 + 8) + (512 * 2048 + 2048 + 2048 * 512 + 512) + 4 * 512
    expected = 50_000 * 512 + 512 * 512 + 6 * layer + (512 * 50_000 + 50_000)
    assert num_parameters("arslm-base") == expected == 70_451_072


def test_dialogpt_medium_has_the_parameters_of_gpt2_medium() -> None:
    """As `transformers` counts them, the tied head once."""
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16)
        ).num_parameters()
    assert num_parameters("dialogpt-medium") == theirs == 354_823_168


@pytest.mark.parametrize("name", SMALL)
def test_widths_fit_int4_blocks_of_32_and_the_fused_attention_heads(name: str) -> None:
    config = preset(name)
    assert config.d_model % 32 == config.d_ff % 32 == config.vocab_size % 32 == 0
    assert config.head_dim in (32, 64, 128)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown preset 'atlass'; known: arslm-base, arslm-tiny, atlas"):
        preset("atlass")

"""The named configurations."""

import pytest
import torch

from training.decoder import Decoder
from training.presets import PRESETS, preset


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_builds_and_gives_finite_logits(name: str) -> None:
    decoder = Decoder(preset(name))
    logits, _ = decoder(torch.arange(8)[None])
    assert logits.shape == (1, 8, decoder.config.vocab_size)
    assert logits.isfinite().all()


def test_atlas_is_a_small_retention_and_expert_model() -> None:
    config = preset("atlas")
    assert set(config.mixers) == {"retention"}
    assert set(config.ffns) == {"moe"}
    assert 2e6 <= Decoder(config).num_parameters() <= 4e6


@pytest.mark.parametrize("name", PRESETS)
def test_widths_fit_int4_blocks_of_32_and_the_fused_attention_heads(name: str) -> None:
    config = preset(name)
    assert config.d_model % 32 == config.d_ff % 32 == config.vocab_size % 32 == 0
    assert config.head_dim in (32, 64, 128)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown preset 'atlass'; known: atlas, gpt2-tiny, llama-tiny"):
        preset("atlass")

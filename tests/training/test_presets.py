"""The named configurations."""

import pytest
import torch
import transformers
from typer.testing import CliRunner

from training.__main__ import app
from training.decoder import Decoder, count_parameters
from training.presets import PRESETS, preset
from training.recipes import RECIPES, recipe

SMALL = [name for name in PRESETS if name == "atlas" or name.endswith("-tiny")]


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
    assert count_parameters(preset("arslm-base")) == expected == 70_451_072


def test_dialogpt_medium_has_the_parameters_of_gpt2_medium() -> None:
    """As `transformers` counts them, the tied head once."""
    with torch.device("meta"):
        theirs = transformers.GPT2LMHeadModel(
            transformers.GPT2Config(n_embd=1024, n_layer=24, n_head=16)
        ).num_parameters()
    assert count_parameters(preset("dialogpt-medium")) == theirs == 354_823_168


@pytest.mark.parametrize(
    ("name", "width", "layers", "billions"),
    [
        ("tars-1b", 768, 12, 0.138),
        ("tars-3b", 1024, 24, 0.435),
        ("tars-7b", 2048, 32, 2.21),
        ("tars-13b", 2560, 40, 4.28),
        ("tars-30b", 4096, 60, 16.2),
        ("tars-70b", 8192, 80, 86.2),
    ],
)
def test_tars_has_the_true_count_that_is_stated(name: str, width: int, layers: int, billions: float) -> None:
    """Table, four square projections, three feed-forward matrices and two norms a layer, the last norm."""
    expected = 32_000 * width + layers * (4 * width**2 + 3 * width * 4 * width + 2 * width) + width
    assert count_parameters(preset(name)) == expected
    assert float(f"{expected / 1e9:.3g}") == billions


def test_retnet_base_holds_twelve_square_matrices_a_layer() -> None:
    """Values, their gate and their way out are twice as wide as queries and keys: 2 + 3·2, and 2·2 behind."""
    expected = 50_257 * 1536 + 24 * (12 * 1536**2 + 2 * 1536) + 1536
    assert count_parameters(preset("retnet-base")) == expected


def test_moe_base_has_eight_experts_in_every_second_layer() -> None:
    config = preset("moe-base")
    assert config.ffns[:4] == ("swiglu", "moe", "swiglu", "moe")
    ffn = 3 * 1536 * 4096
    mixing = 24 * (4 * 1536**2 + 2 * 1536) + 1536
    expected = 50_257 * 1536 + mixing + 12 * ffn + 12 * (8 * ffn + 8 * 1536)
    assert count_parameters(config) == expected


def test_a_count_is_that_of_the_real_model() -> None:
    for name in SMALL:
        assert count_parameters(preset(name)) == Decoder(preset(name)).num_parameters()


@pytest.mark.parametrize("name", SMALL)
def test_widths_fit_int4_blocks_of_32_and_the_fused_attention_heads(name: str) -> None:
    config = preset(name)
    assert config.d_model % 32 == config.d_ff % 32 == config.vocab_size % 32 == 0
    assert config.head_dim in (32, 64, 128)


def test_the_command_lists_every_preset_with_its_blocks_and_sizes_in_eighty_columns() -> None:
    lines = CliRunner(env={"COLUMNS": "80"}).invoke(app, ["presets"]).stdout.splitlines()
    heading, *rows = [" ".join(line.split()) for line in lines]
    assert heading == "name mixer ffn layers width parameters"
    assert [row.split()[0] for row in rows] == list(PRESETS)
    assert "arslm-base gated_attention mlp 6 512 70,451,072" in rows
    assert "moe-base attention swiglu + moe 24 1,536 2,342,341,632" in rows


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown preset 'atlass'; known: arslm-base, arslm-tiny, atlas"):
        preset("atlass")


def test_a_preset_without_a_recipe_is_trained_in_its_full_size() -> None:
    known = recipe("retnet-base")
    assert (known.model, known.learning_rate, known.accumulation) == (preset("retnet-base"), 6e-4, 4)
    assert recipe("dialogpt-medium").chat == "turns"
    assert recipe("atlas") is RECIPES["atlas"]

"""Smoothing moves large activations into the weights and leaves the function as it was."""

import pytest
import torch
from tokenizers import Tokenizer, models

from export.smoothing import Channels, factors, on_grids, smooth
from training.config import ModelConfig
from training.decoder import Decoder
from training.presets import PRESETS

LETTERS = Tokenizer(models.BPE(vocab={chr(i): i for i in range(128)}, merges=[])).to_str()


def decoder_with_a_loud_channel(config: ModelConfig) -> Decoder:
    torch.manual_seed(0)
    decoder = Decoder(config).double()
    with torch.no_grad():
        for layer in range(config.num_layers):
            for part in ("mixer_norm", "ffn_norm"):
                decoder.get_submodule(f"layers.{layer}.{part}").weight[3] = 50
    return decoder


WITH_ALL = {"qk_norm": True, "sliding_window": 7, "biases": "all"}


@pytest.mark.parametrize(
    ("preset", "settings"),
    [("llama-tiny", {}), ("llama-tiny", WITH_ALL), ("gpt2-tiny", {}), ("retnet-moe-tiny", {})],
)
def test_the_function_stays_the_same(preset: str, settings: dict[str, object]) -> None:
    decoder = decoder_with_a_loud_channel(PRESETS[preset].model_copy(update=settings))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    ids = torch.arange(40)[None]
    expected, _ = decoder(ids)
    actual, _ = smooth(decoder, LETTERS)(ids)
    # Only the order of a product's factors has changed; rotation tables are float32. A lost factor costs > 1.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-6)


def test_a_loud_channel_is_evened_in_the_activations() -> None:
    decoder = decoder_with_a_loud_channel(PRESETS["llama-tiny"])
    before = decoder.get_submodule("layers.0.mixer_norm").weight
    after = smooth(decoder, LETTERS).get_submodule("layers.0.mixer_norm").weight
    assert after.max() / after.median() < 0.5 * before.max() / before.median()


def test_post_norms_are_left_alone_because_the_residual_reads_them() -> None:
    config = PRESETS["gpt2-tiny"].model_copy(update={"norm_placement": "post"})
    decoder = decoder_with_a_loud_channel(config)
    smoothed = smooth(decoder, LETTERS)
    norms = [name for name in decoder.state_dict() if "norm" in name]
    assert all(torch.equal(smoothed.state_dict()[name], decoder.state_dict()[name]) for name in norms)


def test_weights_on_a_four_bit_grid_are_found_and_spared() -> None:
    decoder = Decoder(PRESETS["llama-tiny"])
    down = decoder.get_submodule("layers.1.ffn.down")
    with torch.no_grad():
        down.weight.copy_(torch.randint(-8, 8, down.weight.shape) * 0.0625 + 0.01)
    spared = on_grids(decoder, 32)
    assert spared == {"layers.1.ffn.down"}
    smoothed = smooth(decoder, LETTERS, spared).state_dict()
    for name in ("ffn.down", "ffn.up"):
        before, after = decoder.get_submodule(f"layers.1.{name}").weight, smoothed[f"layers.1.{name}.weight"]
        # The rows of what produces the spared channels stay, too; as a reader it is smoothed with its norm.
        assert torch.equal(after, before) is (name == "ffn.down")
    assert not torch.equal(
        smoothed["layers.0.ffn.down.weight"], decoder.state_dict()["layers.0.ffn.down.weight"]
    )


def test_factors_are_the_square_root_of_peak_over_weight_with_mean_one() -> None:
    weight = torch.tensor([[0.5, 1.0], [-1.0, 0.25]])
    factor, read = factors(Channels("norm", ("head",)), {"head": torch.tensor([4.0, 1.0])}, [weight])
    assert factor.tolist() == pytest.approx([2**0.5, 2**-0.5])
    assert read.tolist() == factor.tolist()


def test_a_value_head_has_one_factor_for_all_query_heads_that_share_it() -> None:
    channels = Channels("value", ("out",), width=2, repeats=2)
    peaks = torch.tensor([1.0, 1.0, 4.0, 1.0])  # one value head of width 2, read by two query heads
    factor, read = factors(channels, {"out": peaks}, [torch.ones(1, 4)])
    assert factor.tolist() == pytest.approx([2**0.5, 2**-0.5])
    assert read.tolist() == pytest.approx([2**0.5, 2**-0.5] * 2)

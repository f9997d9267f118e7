"""RetNet's two public layouts: the logits of the paper's formulas, in PyTorch and in the exported graph."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.errors import ExportError
from export.formats.readers import read_model
from export.graph import graph_from_decoder
from export.graph_session import GraphSession
from tests.export.retnet_models import LAYOUTS, MODELS, SMALL, RetNet, logits

IDS = torch.randint(0, 300, (96,), generator=torch.Generator().manual_seed(0))
PUBLISHED = MODELS["published"]


def ours(directory: Path) -> torch.Tensor:
    decoder = read_model(directory).decoder.eval()
    with torch.no_grad():
        values: torch.Tensor = decoder(IDS[None])[0][0]
    return values


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_both_published_forms(name: str, form: str, tmp_path: Path) -> None:
    model = MODELS[name]
    expected = logits(model, IDS, recurrent=form == "recurrent")
    assert expected.std() > 0.4
    # The project's bound for float32.
    torch.testing.assert_close(
        ours(model.write(tmp_path, "torchscale")).double(), expected, rtol=0, atol=1e-4
    )


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_holds_the_same_model(layout: str, tmp_path: Path) -> None:
    """Weights so small that each norm's eps counts, and with it the normalisation before the norm."""
    expected = logits(SMALL, IDS, recurrent=True)
    torch.testing.assert_close(ours(SMALL.write(tmp_path, layout)).double(), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("lowering", ["onnxruntime", "standard"])
def test_the_exported_graph_gives_the_same_logits_step_by_step(lowering: Any, tmp_path: Path) -> None:
    model = RetNet(normalised_embedding=True, scaled_embedding=True, spread_decays=True, size=0.02)
    decoder = read_model(model.write(tmp_path, "port")).decoder.eval()
    path = graph_from_decoder(decoder, tmp_path / "graph" / "model.onnx", lowering=lowering)
    graph = GraphSession(path, decoder.state_specs(), is_fused=lowering == "onnxruntime", threads=1)
    slots, tokens = graph.slots(1), IDS.numpy()
    expected = logits(model, IDS, recurrent=True).numpy()
    np.testing.assert_allclose(graph.prefill(slots, 0, tokens[:40]), expected[39], rtol=0, atol=1e-4)
    for position in range(40, 96):
        step = graph.decode(slots, tokens[position : position + 1], np.array([position]))
        np.testing.assert_allclose(step[0], expected[position], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_fn": "gelu"}, "activation_fn is 'gelu'; supported is 'swish'"),
        ({"use_glu": False}, "use_glu is False; supported is True"),
        ({"deepnorm": True}, "deepnorm is True; supported is False"),
        ({"decoder_normalize_before": False}, "decoder_normalize_before is False; supported is True"),
        ({"multiway": True}, "multiway is True"),
        ({"moe_freq": 2}, "moe_freq is 2; supported is 0"),
        ({"decoder_retention_heads": 3}, "decoder_embed_dim is 64, which is not a multiple of 3 heads"),
        ({"decoder_retention_heads": 0}, "not a multiple of 0 heads"),
        ({"decoder_value_embed_dim": 97}, "decoder_value_embed_dim is 97, which is not a multiple of 2"),
        ({"decoder_value_embed_dim": 1 << 40}, "value_dim is .*at most"),
        ({"decoder_embed_dim": 10**400}, "a whole number of 64 bits is needed"),
        ({"use_lm_decay": True}, "retnet_rel_pos.decay is not what the configuration says"),
        ({"layernorm_embedding": False}, "unknown tensors, first layernorm_embedding.weight"),
    ],
)
def test_what_is_not_computed_is_refused_by_name(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        read_model(PUBLISHED.write(tmp_path, "torchscale", **changes))


def test_the_older_code_with_layernorms_is_refused_by_its_tensors(tmp_path: Path) -> None:
    PUBLISHED.write(tmp_path, "torchscale")
    held = torch.load(tmp_path / "pytorch_model.bin")["model"]
    torch.save(held | {"layers.0.ffn.fc1.bias": torch.zeros(80)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"unknown tensors, first layers\.0\.ffn\.fc1\.bias"):
        read_model(tmp_path)


def test_other_angles_are_refused(tmp_path: Path) -> None:
    PUBLISHED.write(tmp_path, "torchscale")
    held = torch.load(tmp_path / "pytorch_model.bin")["model"]
    held["retnet_rel_pos.angle"] *= 1.05
    torch.save(held, tmp_path / "pytorch_model.bin")
    with pytest.raises(ExportError, match=r"retnet_rel_pos\.angle is not what the configuration says"):
        read_model(tmp_path)


def test_buffers_in_half_precision_are_known_again(tmp_path: Path) -> None:
    model = RetNet(width=256, heads=8, value_width=256, layers=1)
    model.write(tmp_path, "torchscale")
    held = torch.load(tmp_path / "pytorch_model.bin")["model"]
    for dtype in (torch.float16, torch.bfloat16):
        torch.save({name: tensor.to(dtype) for name, tensor in held.items()}, tmp_path / "pytorch_model.bin")
        assert read_model(tmp_path).decoder.config.decays == "doubling"


def test_two_names_of_one_tensor_are_refused(tmp_path: Path) -> None:
    PUBLISHED.write(tmp_path, "torchscale")
    held = torch.load(tmp_path / "pytorch_model.bin")["model"]
    name = "layers.0.ffn.fc1.weight"
    torch.save(held | {f"decoder.{name}": held[name]}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ExportError, match="are two names of one tensor"):
        read_model(tmp_path)


def test_without_a_length_the_context_is_the_papers(tmp_path: Path) -> None:
    (tmp_path / "short").mkdir()
    (tmp_path / "long").mkdir()
    short = PUBLISHED.write(tmp_path / "short", "torchscale")
    assert read_model(short).decoder.config.max_length == 2048
    long = PUBLISHED.write(tmp_path / "long", "torchscale", max_target_positions=8192)
    assert json.loads((long / "config.json").read_text())["max_target_positions"] == 8192
    assert read_model(long).decoder.config.max_length == 8192

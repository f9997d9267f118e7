"""Plans built by TensorRT-RTX, which needs no GPU to build; what they compute is not verified without one."""

import onnx
import pytest
from onnx import TensorProto, helper

from export import tensorrt
from export.errors import ExportError
from export.graph import graph_from_decoder
from export.quantize import quantize_graph
from export.tensorrt import PlanProfile, build_plan, decode_and_prefill
from training.config import ModelConfig
from training.decoder import Decoder

PROFILES = decode_and_prefill(max_batch=8, prefill_batch=2, chunk=48)


def test_decode_and_prefill_are_two_profiles():
    decode, prefill = PROFILES
    assert decode == PlanProfile((1, 4, 8), (1, 1, 1))
    assert prefill == PlanProfile((1, 1, 2), (1, 24, 48), (1, 1, 16))


def test_attention_cache_update_and_rotation_are_layers_of_their_own(graph_of, tmp_path):
    plan = tmp_path / "model.plan"
    stamp = build_plan(
        graph_of("attention", "standard", "float16"), plan, profiles=PROFILES, target="tensorrt-rtx"
    )
    assert [file.name for file in tmp_path.iterdir()] == ["model.plan"]
    assert plan.stat().st_size > 100_000
    assert (stamp.library, stamp.compute_capability) == ("tensorrt-rtx", "any")
    assert stamp.version.startswith("1.")
    assert stamp.layers["ATTENTION_INPUT"] == stamp.layers["ATTENTION_OUTPUT"] == 2  # one per decoder layer
    assert stamp.layers["KV_CACHE_UPDATE"] == 4  # keys and values
    assert stamp.layers["ROTARY_EMBEDDING"] == 4  # queries and keys
    assert "SOFTMAX" not in stamp.layers


@pytest.mark.parametrize("precision", ["float16", "int4"])
def test_retention_and_experts_build(graph_of, tmp_path, precision):
    path = graph_of("retention_moe", "standard", "float16")
    if precision == "int4":
        path = quantize_graph(path, tmp_path / "q.onnx", "int4", 32)
    stamp = build_plan(path, tmp_path / "model.plan", profiles=PROFILES, target="tensorrt-rtx")
    assert stamp.layers["ROTARY_EMBEDDING"] == 4
    assert stamp.layers.get("DEQUANTIZE", 0) == (15 if precision == "int4" else 0)


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_quantized_attention_keeps_its_weights_small_in_the_plan(graph_of, tmp_path, precision):
    path = quantize_graph(graph_of("attention", "standard", "float16"), tmp_path / "q.onnx", precision, 32)
    stamp = build_plan(path, tmp_path / "model.plan", profiles=PROFILES, target="tensorrt-rtx")
    assert stamp.layers["DEQUANTIZE"] == 15  # seven matrices in two layers, and the head


def test_an_input_that_the_parser_ignores_is_an_error(tmp_path):
    info, f = helper.make_tensor_value_info, TensorProto.FLOAT
    shape = ["B", "T"]
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "one",
        [info("x", f, shape), info("ignored", f, shape)],
        [info("y", f, shape)],
    )
    opsets = [helper.make_opsetid("", 24)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "m.onnx")
    with pytest.raises(ExportError, match=r"would not compute what the graph says.*Unused Input: ignored"):
        build_plan(tmp_path / "m.onnx", tmp_path / "p.plan", profiles=PROFILES, target="tensorrt-rtx")
    assert not (tmp_path / "p.plan").exists()


def test_more_tokens_than_the_cache_holds_are_an_error(graph_of, tmp_path):
    profiles = decode_and_prefill(max_batch=4, prefill_batch=1, chunk=120)
    with pytest.raises(ExportError, match="not self-consistent"):
        build_plan(
            graph_of("attention", "standard", "float16"),
            tmp_path / "p.plan",
            profiles=profiles,
            target="tensorrt-rtx",
        )


def test_a_graph_that_does_not_build_gives_the_builders_own_words(graph_of, tmp_path):
    with pytest.raises(ExportError, match="no plan could be built; the ONNX graph runs without it"):
        build_plan(
            graph_of("attention", "onnxruntime"),
            tmp_path / "p.plan",
            profiles=PROFILES,
            target="tensorrt-rtx",
        )
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("target", "has_package", "sentence"),
    [
        ("tpu", True, "target 'tpu' was given; known: tensorrt, tensorrt-rtx"),
        ("tensorrt", False, "package tensorrt is not installed; the ONNX graph runs without it"),
        ("tensorrt", True, "builds on the GPU that will run the plan, and there is none"),
    ],
)
def test_what_is_missing_is_named_in_one_sentence(
    monkeypatch, graph_of, tmp_path, target, has_package, sentence
):
    monkeypatch.setattr(tensorrt, "find_spec", lambda name: object() if has_package else None)
    monkeypatch.setattr(tensorrt.shutil, "which", lambda program: None)
    with pytest.raises(ExportError, match=sentence):
        build_plan(tmp_path / "m.onnx", tmp_path / "p.plan", profiles=PROFILES, target=target)


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "num_layers", "most"), [("float16", 8, 1.3), ("int4", 30, 0.8)])
def test_a_model_in_the_sizes_of_smollm2_builds(tmp_path, precision, num_layers, most):
    config = ModelConfig(
        vocab_size=49152,
        max_length=2048,
        d_model=576,
        num_layers=num_layers,
        num_heads=9,
        num_kv_heads=3,
        head_dim=64,
        d_ff=1536,
        mixer="attention",
        ffn="swiglu",
    )
    decoder = Decoder(config)
    path = graph_from_decoder(decoder, tmp_path / "m.onnx", lowering="standard", dtype="float16")
    if precision == "int4":
        path = quantize_graph(path, tmp_path / "q.onnx", "int4", 64)
    profiles = decode_and_prefill(max_batch=16, prefill_batch=2, chunk=256)
    stamp = build_plan(path, tmp_path / "model.plan", profiles=profiles, target="tensorrt-rtx")
    assert stamp.layers["ATTENTION_INPUT"] == num_layers
    in_half = 2 * decoder.num_parameters()  # bytes; a plan holds kernels for both profiles besides
    assert (tmp_path / "model.plan").stat().st_size < most * in_half

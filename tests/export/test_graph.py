import gc
import math
import weakref

import numpy as np
import onnx
import pytest
import torch

from export.graph import graph_from_decoder
from export.onnx_files import load_graph, save_graph, staged
from training.config import ModelConfig
from training.decoder import Decoder
from training.presets import preset

NAMES = ("attention", "learned_positions", "retention_moe")


def described(values) -> dict[str, tuple[int, list[int | str]]]:
    return {
        value.name: (
            value.type.tensor_type.elem_type,
            [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim],
        )
        for value in values
    }


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lowering", ["onnxruntime", "standard"])
def test_tensors_are_those_of_the_contract(graph_of, decoders, name, lowering):
    graph = onnx.load(graph_of(name, lowering), load_external_data=False).graph
    specs = decoders[name].state_specs()
    tokens = {"input_ids": (7, ["B", "T"]), "positions": (7, ["B", "T"]), "lengths": (7, ["B"])}
    tokens["logits_at"] = (7, ["B", "K"])
    past = {spec.past: (1, ["B", *spec.shape]) for spec in specs}
    present = {spec.present: (1, ["B", *spec.shape]) for spec in specs}
    assert described(graph.input) == tokens | past
    assert described(graph.output) == {"logits": (1, ["B", "K", 97])} | present


@pytest.mark.parametrize("name", NAMES)
def test_the_model_is_valid_at_opset_24(graph_of, name):
    path = graph_of(name, "standard")
    onnx.checker.check_model(path, full_check=True)
    assert {opset.domain: opset.version for opset in onnx.load(path).opset_import}[""] == 24


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("lowering", ["onnxruntime", "standard"])
def test_every_weight_is_written_once(graph_of, decoders, name, lowering):
    path = graph_of(name, lowering)
    decoder = decoders[name]
    tables = sum(table.numel() for table in ([*decoder.rotary.buffers()] if decoder.rotary else []))
    initializers = onnx.load(path, load_external_data=False).graph.initializer
    written = sum(math.prod(tensor.dims) for tensor in initializers if tensor.dims)
    assert 0 <= written - decoder.num_parameters() - tables < 300  # a few constants of the graph's own
    assert path.with_name(f"{path.name}.data").stat().st_size <= 4 * written + 8192  # and alignment


@pytest.mark.parametrize("name", NAMES)
def test_weights_have_the_decoders_names_and_values(graph_of, decoders, name):
    model = load_graph(graph_of(name, "onnxruntime"))
    weights = decoders[name].state_dict()
    if decoders[name].config.tied_head:
        del weights["head.weight"]
    for key, weight in weights.items():
        if key not in model.graph.initializers:  # packed: tests/export/test_fusions.py
            assert key.split(".")[-2] in ("query", "key", "value")
            continue
        found = model.graph.initializers[key].const_value.numpy()
        is_matrix_on_the_right = weight.ndim == 2 and key.split(".")[0] == "layers"
        np.testing.assert_array_equal(found.T if is_matrix_on_the_right else found, weight.numpy())


def test_no_path_of_the_machine_is_in_the_graph(graph_of):
    content = graph_of("retention_moe", "onnxruntime").read_bytes()
    assert b"site-packages" not in content
    assert b".py" not in content


def test_half_precision_keeps_logits_and_recurrent_states_in_float32(graph_of):
    graph = onnx.load(graph_of("retention_moe", "standard", "float16"), load_external_data=False).graph
    types = {name: kind for name, (kind, _) in described([*graph.input, *graph.output]).items()}
    assert types["past.00.retention"] == types["logits"] == onnx.TensorProto.FLOAT
    weights = {tensor.name: tensor.data_type for tensor in graph.initializer}
    assert weights["layers.0.mixer.query.weight"] == onnx.TensorProto.FLOAT16
    cache = onnx.load(graph_of("attention", "standard", "float16"), load_external_data=False).graph
    assert described(cache.input)["past.00.key"][0] == onnx.TensorProto.FLOAT16


def test_the_router_of_a_half_precision_graph_computes_in_float32(graph_of):
    graph = onnx.load(graph_of("retention_moe", "standard", "float16"), load_external_data=False).graph
    routers = [node for node in graph.node if "router" in "".join(node.input)]
    producers = {output: node for node in graph.node for output in node.output}
    assert len(routers) == 2
    for router in routers:
        cast = producers[router.input[0]]
        assert (cast.op_type, cast.attribute[0].i) == ("Cast", onnx.TensorProto.FLOAT)


def test_half_precision_is_refused_where_no_kernel_computes_in_it(decoders, tmp_path):
    with pytest.raises(ValueError, match="float32: choose int8"):
        graph_from_decoder(
            decoders["attention"], tmp_path / "m.onnx", lowering="onnxruntime", dtype="float16"
        )


def test_an_unknown_lowering_is_refused_with_the_known_ones(decoders, tmp_path):
    with pytest.raises(ValueError, match="'tvm' was given; known: onnxruntime, standard"):
        graph_from_decoder(decoders["attention"], tmp_path / "m.onnx", lowering="tvm")


def test_a_head_size_without_a_kernel_is_refused_for_tensorrt(tmp_path):
    config = ModelConfig(
        vocab_size=9,
        max_length=8,
        d_model=16,
        num_layers=1,
        num_heads=1,
        num_kv_heads=1,
        head_dim=16,
        d_ff=16,
        mixer="attention",
        ffn="swiglu",
    )
    with pytest.raises(Exception, match="head_dim is 16, but TensorRT's attention takes"):
        graph_from_decoder(Decoder(config), tmp_path / "m.onnx", lowering="standard")
    assert not any(tmp_path.iterdir())


def test_exporting_leaves_the_decoder_as_it_was(decoders, tmp_path):
    decoder = decoders["attention"]
    before = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    graph_from_decoder(decoder, tmp_path / "m.onnx", lowering="standard", dtype="float16")
    for name, weight in decoder.state_dict().items():
        assert torch.equal(weight, before[name])
    assert decoder(torch.tensor([[1, 2]]))[0].dtype == torch.float32


def test_a_write_that_fails_leaves_what_was_there(tmp_path):
    path = tmp_path / "m.onnx"
    path.write_text("old")

    def write_and_fail() -> None:
        with staged(path) as directory:
            (directory / "m.onnx").write_text("new")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_and_fail()
    assert [file.name for file in tmp_path.iterdir()] == ["m.onnx"]
    assert path.read_text() == "old"


def test_a_graph_survives_reading_and_writing(graph_of, tmp_path):
    path = graph_of("attention", "standard")
    copy = save_graph(load_graph(path), tmp_path / path.name)
    first, second = onnx.load(path), onnx.load(copy)
    assert [node.name for node in first.graph.node] == [node.name for node in second.graph.node]
    for one, other in zip(first.graph.initializer, second.graph.initializer, strict=True):
        assert one.raw_data == other.raw_data


def test_what_is_no_graph_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such graph"):
        load_graph(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    with pytest.raises(ValueError, match="does not parse as an ONNX model"):
        load_graph(tmp_path / "text.onnx")


def test_what_was_exported_is_freed_with_its_decoder(tmp_path):
    """The exporter's rewrite rules remember a graph: a model's weights would stay in memory to the end."""
    decoder = Decoder(preset("llama-tiny")).eval()
    weights = [weakref.ref(parameter) for parameter in decoder.parameters()]
    graph_from_decoder(decoder, tmp_path / "model.onnx", lowering="onnxruntime")
    del decoder
    gc.collect()
    assert [weight() for weight in weights if weight() is not None] == []

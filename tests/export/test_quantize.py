from itertools import product

import numpy as np
import onnx
import pytest
import torch

from export.blockwise import (
    dequantize_blocks,
    fitting_block,
    pack_unsigned,
    quantize_blocks,
)
from export.graph import graph_from_decoder
from export.graph_session import GraphSession
from export.grids import grid_of
from export.onnx_files import load_graph
from export.quantize import quantize_graph
from training.decoder import Decoder

NAMES = ("attention", "learned_positions", "retention_moe")
LOWERINGS = ("onnxruntime", "standard")
BITS = {"int8": 8, "int4": 4}


def random_weight(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


@pytest.mark.parametrize(("bits", "block"), [*product((8, 4), (16, 32, 128))])
def test_a_weight_is_off_by_at_most_half_a_step(bits, block):
    weight = random_weight(24, 256)
    q, scales = quantize_blocks(weight, bits=bits, block_size=block)
    error = np.abs(dequantize_blocks(q, scales) - weight).reshape(24, -1, block)
    is_clipped = (q == 2 ** (bits - 1) - 1) | (q == -(2 ** (bits - 1)))
    # The ends of the range stand for all beyond; elsewhere rounding is the only error, and float32's own.
    assert np.all(is_clipped | (error <= scales[..., None] * 0.5001))


@pytest.mark.parametrize("bits", [8, 4])
def test_a_grid_of_representable_weights_is_exact(bits):
    q = np.random.default_rng(0).integers(-(2 ** (bits - 1)) + 1, 2 ** (bits - 1), (8, 4, 32))
    q[..., 0] = 2 ** (bits - 1) - 1  # the largest magnitude fixes the scale
    weight = (q * np.float32(0.125)).reshape(8, 128)
    np.testing.assert_allclose(
        dequantize_blocks(*quantize_blocks(weight, bits=bits, block_size=32)), weight, rtol=1e-6
    )


def test_clipping_is_chosen_only_where_it_lowers_the_error():
    weight = random_weight(64, 128)
    plain = np.abs(weight.reshape(64, -1, 32)).max(-1, keepdims=True) / 7
    rounded = np.clip(np.rint(weight.reshape(64, -1, 32) / plain), -8, 7) * plain
    plain_error = np.square(rounded - weight.reshape(64, -1, 32)).sum(-1)
    chosen = dequantize_blocks(*quantize_blocks(weight, bits=4, block_size=32))
    error = np.square(chosen - weight).reshape(64, -1, 32).sum(-1)
    assert np.all(error <= plain_error * (1 + 1e-5))
    assert error.sum() < 0.95 * plain_error.sum()


def test_rows_are_padded_to_whole_blocks_and_zeros_stay_zero():
    q, scales = quantize_blocks(np.zeros((3, 40), np.float32), bits=4, block_size=32)
    assert q.shape == (3, 2, 32)
    assert scales.shape == (3, 2)
    assert not q.any()
    assert np.isfinite(scales).all()


def test_two_numbers_of_four_bits_share_a_byte_the_first_one_low():
    q = np.array([[[-8, 7, 0, 1]]], np.int8)
    np.testing.assert_array_equal(pack_unsigned(q, 4), [[[0xF0, 0x98]]])
    np.testing.assert_array_equal(pack_unsigned(q, 8), [[[120, 135, 128, 129]]])


def test_a_block_that_does_not_divide_is_halved_until_it_does():
    assert [fitting_block(K, 128) for K in (256, 192, 96, 40, 7)] == [128, 64, 32, 16, 16]


def reference(decoder: Decoder, bits: int, block: int, *, is_fused: bool) -> Decoder:
    """A decoder whose weights went through numpy's quantization, in float32 and without any graph."""
    weights = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    for name, weight in weights.items():
        is_matrix = name.endswith(("weight", "gate_up", "down")) and weight.ndim > 1
        if not is_matrix or any(part in name for part in ("embedding", "position", "router")):
            continue
        fitting, own_bits = fitting_block(weight.shape[-1], block), 8 if name == "head.weight" else bits
        if is_fused and own_bits == 4 and weight.ndim == 2:
            values = grid_of(weight.numpy(), fitting).values()
        else:
            values = dequantize_blocks(*quantize_blocks(weight.numpy(), bits=own_bits, block_size=fitting))
        weights[name] = torch.from_numpy(values)
    untied = decoder.config.model_copy(update={"tied_head": False})
    return Decoder.from_tensors(untied, weights).eval()


def step_logits(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return decoder(torch.from_numpy(tokens)[None])[0][0, -1].numpy()


@pytest.mark.parametrize(("name", "lowering", "precision"), [*product(NAMES, LOWERINGS, ("int8", "int4"))])
def test_a_quantized_graph_computes_with_the_quantized_weights(
    graph_of, decoders, tmp_path, name, lowering, precision
):
    path = quantize_graph(graph_of(name, lowering), tmp_path / "q.onnx", precision, 32)
    session = GraphSession(path, decoders[name].state_specs(), is_fused=lowering == "onnxruntime", threads=1)
    tokens = np.random.default_rng(2).integers(0, 97, 30)
    logits = session.prefill(session.slots(1), 0, tokens)
    quantized = reference(decoders[name], BITS[precision], 32, is_fused=lowering == "onnxruntime")
    expected = step_logits(quantized, tokens)
    # What remains is int8 activations (accuracy level 4): steps of 1/127 of a block's largest, ~0.4 % of the
    # signal per product, random in sign, through two layers and the head.
    assert np.abs(logits - expected).max() < 0.05 * np.abs(expected).max()
    assert np.corrcoef(logits, expected)[0, 1] > 0.999


@pytest.mark.parametrize("name", NAMES)
def test_int4_differs_from_float_by_more_than_from_its_own_weights(graph_of, decoders, tmp_path, name):
    path = quantize_graph(graph_of(name, "onnxruntime"), tmp_path / "q.onnx", "int4", 32)
    session = GraphSession(path, decoders[name].state_specs(), is_fused=True, threads=1)
    tokens = np.random.default_rng(2).integers(0, 97, 30)
    logits = session.prefill(session.slots(1), 0, tokens)
    of_its_own = np.abs(logits - step_logits(reference(decoders[name], 4, 32, is_fused=True), tokens)).max()
    of_float = np.abs(logits - step_logits(decoders[name], tokens)).max()
    assert of_float > 2 * of_its_own


def on_offset_grids(decoder: Decoder) -> Decoder:
    """The same with the layers' matrices as GGUF's Q4_1 would hold them: sixteen levels from the lowest."""
    weights = {name: weight.clone() for name, weight in decoder.state_dict().items()}
    for name, weight in weights.items():
        if name.startswith("layers") and weight.ndim == 2:
            blocks = weight.unflatten(1, (-1, 32))
            low, high = blocks.aminmax(dim=-1, keepdim=True)
            step = (high - low) / 15
            weights[name] = (((blocks - low) / step).round() * step + low).flatten(1)
    return Decoder.from_tensors(decoder.config, weights).eval()


def test_weights_on_grids_with_offsets_lose_nothing_but_what_their_activations_lose(decoders, tmp_path):
    decoder = on_offset_grids(decoders["attention"])
    whole = graph_from_decoder(decoder, tmp_path / "whole.onnx", lowering="onnxruntime")
    tokens = np.random.default_rng(2).integers(0, 97, 30)
    expected = step_logits(decoder, tokens)
    errors = {}
    for precision in ("int8", "int4"):
        path = quantize_graph(whole, tmp_path / f"{precision}.onnx", precision, 32)
        session = GraphSession(path, decoder.state_specs(), is_fused=True, threads=1)
        errors[precision] = np.abs(session.prefill(session.slots(1), 0, tokens) - expected).mean()
    # Offsets that are left out cost thirteen times what int8 costs.
    assert errors["int4"] < 2 * errors["int8"]
    sums = [node for node in load_graph(path).graph if node.op_type == "ReduceSum"]
    assert len(sums) == 4 * decoder.config.num_layers  # shared by query, key and value; by gate and up


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_a_row_has_the_same_bits_alone_and_in_a_crowd(decoders, tmp_path, precision):
    decoder = on_offset_grids(decoders["attention"])
    whole = graph_from_decoder(decoder, tmp_path / "whole.onnx", lowering="onnxruntime")
    path = quantize_graph(whole, tmp_path / "q.onnx", precision)
    session = GraphSession(path, decoder.state_specs(), is_fused=True, threads=1)
    tokens = np.random.default_rng(2).integers(0, 97, 9)
    together = session.decode(session.slots(9), tokens, np.zeros(9, np.int64))
    for row, token in enumerate(tokens):
        alone = session.decode(session.slots(1), np.array([token]), np.zeros(1, np.int64))
        np.testing.assert_array_equal(alone[0], together[row])


@pytest.mark.parametrize(("precision", "threads"), [*product(BITS, (1, 2))])
def test_a_row_of_a_mixture_has_the_same_bits_alone_and_in_a_crowd(
    graph_of, decoders, tmp_path, precision, threads
):
    path = quantize_graph(graph_of("retention_moe", "onnxruntime"), tmp_path / "q.onnx", precision)
    session = GraphSession(path, decoders["retention_moe"].state_specs(), is_fused=True, threads=threads)
    tokens = np.random.default_rng(2).integers(0, 97, 16)
    together = session.decode(session.slots(16), tokens, np.zeros(16, np.int64))
    for row, token in enumerate(tokens):
        alone = session.decode(session.slots(1), np.array([token]), np.zeros(1, np.int64))
        np.testing.assert_array_equal(alone[0], together[row])


def initializers(path) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load(path, load_external_data=False).graph.initializer}


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_embedding_norms_and_router_stay_and_the_tied_head_gets_its_own_copy(graph_of, tmp_path, lowering):
    before = initializers(graph_of("retention_moe", lowering))
    after = initializers(quantize_graph(graph_of("retention_moe", lowering), tmp_path / "q.onnx", "int4", 32))
    kept = {name for name in after if after[name].data_type == onnx.TensorProto.FLOAT and name in before}
    matrices = {name for name in kept if len(after[name].dims) > 1 and name.endswith(".weight")}
    assert matrices == {"embedding.weight", "layers.0.ffn.router.weight", "layers.1.ffn.router.weight"}
    assert "layers.0.mixer_norm.weight" in kept
    assert "head.weight.q" in after


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_router_is_not_quantized_in_the_standard_graph(graph_of, tmp_path, dtype):
    path = quantize_graph(graph_of("retention_moe", "standard", dtype), tmp_path / "q.onnx", "int4", 32)
    assert not [name for name in initializers(path) if "router" in name and name.endswith(".q")]
    assert "layers.0.ffn.gate_up.q" in initializers(path)


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize(("precision", "least", "most"), [("int8", 1.0, 1.3), ("int4", 0.5, 0.8)])
def test_bytes_per_weight(graph_of, decoders, tmp_path, lowering, precision, least, most):
    path = quantize_graph(graph_of("attention", lowering), tmp_path / "q.onnx", precision, 32)
    tables = 4 * (97 * 64 + 2 * 96 * 32)  # the embedding and the rotation
    quantized = path.with_name("q.onnx.data").stat().st_size - tables
    weights = decoders["attention"].num_parameters()
    assert least < quantized / weights < most


def test_a_tied_table_is_not_written_for_the_head_again(graph_of, tmp_path):
    path = quantize_graph(graph_of("attention", "onnxruntime"), tmp_path / "q.onnx", "int8", 32)
    tables = [name for name in load_graph(path).graph.initializers if name.startswith(("head", "embedding"))]
    assert sorted(tables) == ["embedding.weight", "head.weight.q", "head.weight.scales"]


@pytest.mark.parametrize(
    ("precision", "sentence"),
    [
        ("fp32", "can be quantized to int8, int4: the graph has it already"),
        ("fp16", "choose it when the graph is made"),
        ("int3", "'int3' was given; weights can be quantized to int8, int4$"),
    ],
)
def test_a_precision_that_cannot_be_had_is_refused(graph_of, tmp_path, precision, sentence):
    with pytest.raises(ValueError, match=sentence):
        quantize_graph(graph_of("attention", "onnxruntime"), tmp_path / "q.onnx", precision)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("block", [8, 48, 0])
def test_a_block_size_that_no_kernel_takes_is_refused(graph_of, tmp_path, block):
    with pytest.raises(ValueError, match=f"block size {block} was given; allowed: powers of two"):
        quantize_graph(graph_of("attention", "onnxruntime"), tmp_path / "q.onnx", "int4", block)

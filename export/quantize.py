"""Weight-only quantization of a graph: matrices and experts to int8 or int4, by blocks.

Embeddings, norms and routers stay as they are; a head tied to the embedding gets a quantized copy of its own,
with 8 bits in int4 as well: with 4 it costs about as much quality as all layers (docs/adr/011).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from ml_dtypes import int4
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass

from export.blockwise import fitting_block, pack_pairs, pack_unsigned, quantize_blocks
from export.grids import grid_of
from export.onnx_files import load_graph, save_graph

Precision = Literal["fp32", "fp16", "int8", "int4"]
BITS: dict[str, int] = {"int8": 8, "int4": 4}
# Input channels that share a scale: the most for which a row's bits don't depend on the batch that it is
# computed in (docs/adr/005).
BLOCKS: dict[int, int] = {8: 64, 4: 32}
HEAD, HEAD_BITS = "head", 8
CONTRIB = "com.microsoft"
ACCURACY_LEVEL = 4  # activations to int8 by blocks: the kernels that make quantization fast
REFUSALS: dict[str, str] = {
    "fp32": "the graph has it already",
    "fp16": "choose it when the graph is made: graph_from_decoder(..., lowering='standard', dtype='float16')",
}


def quantize_graph(
    path_in: Path, path_out: Path, precision: Precision, block_size: int | None = None
) -> Path:
    """Write the graph in `path_in` to `path_out` with its weights in `precision`; returns `path_out`.

    `block_size` is how many input channels share a scale, without one what BLOCKS says; a matrix that it
    doesn't divide takes a half of it, a quarter, and so on down to 16. Raises ValueError for a precision or
    block size that can't be had.
    """
    bits = _bits(precision)
    if block_size is not None and (block_size < 16 or block_size & (block_size - 1)):
        raise ValueError(
            f"block size {block_size} was given; allowed: powers of two from 16, such as 32 or 128"
        )
    model = load_graph(path_in)
    rewrite = _for_onnxruntime if CONTRIB in model.opset_imports else _for_tensorrt
    for node in [*model.graph.all_nodes()]:
        rewrite(model.graph, node, bits, block_size)
    RemoveUnusedNodesPass()(model)
    return save_graph(model, path_out)


def _bits(precision: str) -> int:
    if precision not in BITS:
        hint = f": {REFUSALS[precision]}" if precision in REFUSALS else ""
        raise ValueError(
            f"precision {precision!r} was given; weights can be quantized to {', '.join(BITS)}{hint}"
        )
    return BITS[precision]


def _for_onnxruntime(graph: ir.Graph, node: ir.Node, bits: int, block_size: int | None) -> None:
    """MatMul and Gemm to MatMulNBits, MoE to QMoE."""
    if node.op_type == "MoE":
        _to_qmoe(graph, node, bits, block_size)
    elif (weight := _weight_of(node)) is not None:
        _to_matmul_nbits(graph, node, weight, bits, block_size)


def _weight_of(node: ir.Node) -> NDArray[Any] | None:
    """The constant matrix (..., N, K) of a linear layer; None for any other node, and for a router."""
    weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
    if weight is None or weight.const_value is None or "router" in _name(weight):
        return None
    values = weight.const_value.numpy()
    return values if node.op_type == "Gemm" else values.swapaxes(-1, -2)


def _to_matmul_nbits(
    graph: ir.Graph, node: ir.Node, weight: NDArray[Any], bits: int, block_size: int | None
) -> None:
    (N, K), bits = weight.shape, HEAD_BITS if _module(node) == HEAD else bits
    x, name, block = node.inputs[0], f"{_module(node)}.weight", fitting_block(K, block_size or BLOCKS[bits])
    zeros = None
    if bits == 4:
        grid = grid_of(weight, block)
        if grid.has_offsets:
            x, K = _with_block_sums(graph, node, block), K + grid.offsets.shape[1]
            grid = grid.with_offsets_as_weights()
        q, scales, zeros = grid.q, grid.scales, _constant(graph, f"{name}.zeros", pack_pairs(grid.zeros))
    else:
        q, scales = quantize_blocks(weight, bits=bits, block_size=block)
    inputs = [
        x,
        _constant(graph, f"{name}.q", pack_unsigned(q, bits)),
        _constant(graph, f"{name}.scales", scales),
    ]
    bias = node.inputs[2:]  # a Gemm's
    if zeros is not None or bias:
        inputs += [zeros, *([None, *bias] if bias else [])]
    sizes = {"K": K, "N": N, "bits": bits, "block_size": block, "accuracy_level": ACCURACY_LEVEL}
    _turn_into(node, "MatMulNBits", inputs, [ir.AttrInt64(key, value) for key, value in sizes.items()])


def _with_block_sums(graph: ir.Graph, node: ir.Node, block: int) -> ir.Value:
    """The node's input (…, K) and behind it the sum of each block of channels: (…, K + K / block).

    All that read the same input share them.
    """
    x = node.inputs[0]
    assert x is not None
    name = f"{_name(x)}.with_sums_of_{block}"
    for reader in x.consumers():
        if reader.outputs[0].name == name:
            return reader.outputs[0]
    assert x.shape is not None
    shape = _shared(graph, f"blocks_of_{block}", np.array([*[0] * (len(x.shape) - 1), -1, block], np.int64))
    last = _shared(graph, "last_axis", np.array([-1], np.int64))
    blocks = ir.node("Reshape", [x, shape], name=f"{node.name}/blocks")
    sums = ir.node("ReduceSum", [blocks.outputs[0], last], {"keepdims": 0}, name=f"{node.name}/sums")
    joined = ir.node("Concat", [x, sums.outputs[0]], {"axis": -1}, name=f"{node.name}/with_sums")
    joined.outputs[0].name = name
    graph.insert_before(node, [blocks, sums, joined])
    return joined.outputs[0]


def _shared(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    return graph.initializers[name] if name in graph.initializers else _constant(graph, name, values)


def _to_qmoe(graph: ir.Graph, node: ir.Node, bits: int, block_size: int | None) -> None:
    x, router, gate_up, _, down = node.inputs
    weights = {_name(value): _numpy(value) for value in (gate_up, down)}
    block = min(fitting_block(weight.shape[-1], block_size or BLOCKS[bits]) for weight in weights.values())
    inputs = [x, router]
    for name, weight in weights.items():
        q, scales = quantize_blocks(weight, bits=bits, block_size=block)
        packed = pack_unsigned(q, bits).reshape(*weight.shape[:2], -1)
        inputs += [_constant(graph, f"{name}.q", packed), _constant(graph, f"{name}.scales", scales), None]
    sizes = {"expert_weight_bits": bits, "block_size": block, "accuracy_level": ACCURACY_LEVEL}
    own = [ir.AttrInt64(key, value) for key, value in sizes.items()]
    _turn_into(node, "QMoE", inputs[:-1], [*node.attributes.values(), *own])


def _turn_into(
    node: ir.Node, op_type: str, inputs: Sequence[ir.Value | None], attributes: Iterable[ir.Attr]
) -> None:
    """Make `node` another of ONNX Runtime's operators, with the outputs it has."""
    attributes = [*attributes]
    node.op_type, node.domain = op_type, CONTRIB
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        node.replace_input_with(index, value)
    node.attributes.clear()
    node.attributes.update({attribute.name: attribute for attribute in attributes})


def _for_tensorrt(graph: ir.Graph, node: ir.Node, bits: int, block_size: int | None) -> None:
    """A DequantizeLinear before each constant matrix, which TensorRT folds into its own kernels."""
    weight = _weight_of(node)
    if weight is None:
        return
    bits = HEAD_BITS if _module(node) == HEAD else bits
    block = fitting_block(weight.shape[-1], block_size or BLOCKS[bits])
    q, scales = quantize_blocks(weight, bits=bits, block_size=block)
    flat = q.reshape(weight.shape)  # a block that divides K needs no padding
    if is_by_columns := node.op_type == "MatMul":
        flat, scales = flat.swapaxes(-1, -2), scales.swapaxes(-1, -2)
    name = f"{_module(node)}.{_name(node.inputs[1]).rsplit('.')[-1]}"
    dequantize = ir.node(
        "DequantizeLinear",
        [
            _constant(graph, f"{name}.q", flat.astype(int4) if bits == 4 else flat),
            _constant(graph, f"{name}.scales", scales.astype(weight.dtype)),
        ],
        {"axis": flat.ndim - (2 if is_by_columns else 1), "block_size": block},
        name=f"{name}/dequantize",
    )
    graph.insert_before(node, dequantize)
    node.replace_input_with(1, dequantize.outputs[0])


def _constant(graph: ir.Graph, name: str, values: NDArray[Any]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(values), name=name)
    value = ir.val(name, tensor.dtype, values.shape, const_value=tensor)
    graph.register_initializer(value)
    return value


def _numpy(value: ir.Value | None) -> NDArray[Any]:
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def _name(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def _module(node: ir.Node) -> str:
    """`layers.0.ffn.down` of the node `layers.0.ffn.down/node_linear_6`."""
    assert node.name is not None
    return node.name.split("/")[0]

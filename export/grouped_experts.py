"""A mixture's experts as ordinary products, each of the rows that chose it: docs/adr/012.

ONNX Runtime packs the constant matrix of a product and shares it among the cores; its MoE does neither.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnx_ir.tape import Tape

CONTRIB = "com.microsoft"
Columns = Callable[[NDArray[Any]], NDArray[Any]]  # an expert's weights as (inputs, outputs)


def group_experts(model: ir.Model) -> ir.Model:
    """Put the products of single experts in place of each MoE: the same function of each row.

    A row has the same bits in any batch, which MoE does not promise. Changes `model` and returns it.
    """
    for node in [*model.graph]:
        if node.op_type == "MoE":
            _group(model.graph, node)
    RemoveUnusedNodesPass()(model)
    return model


@dataclass(frozen=True)
class _Routes:
    """A row's choice of an expert is a route: those of row r are k·r to k·r + k - 1."""

    weights: ir.Value  # (N, k)
    counts: ir.Value  # (E,) routes to each expert
    order: ir.Value  # (N·k,) the routes, expert by expert
    places: ir.Value  # (N·k,) where each route is in that order


def _group(graph: ir.Graph, moe: ir.Node) -> None:
    """x (N, C), logits (N, E), gate_up (E, 2F, C) interleaved, down (E, C, F) -> (N, C)."""
    x, logits, gate_up, _, down = moe.inputs
    assert gate_up is not None
    assert down is not None
    assert gate_up.shape is not None
    k, C = moe.attributes["k"].as_int(), gate_up.shape[2]
    assert isinstance(C, int)
    tape = Tape()
    gate_ups, downs = _matrices(graph, gate_up, _halves), _matrices(graph, down, np.transpose)
    routes = _route(tape, graph, logits, k, len(downs))
    rows = tape.op("Div", [routes.order, _integers(graph, k)])
    by_expert = _products(tape, tape.op("Gather", [x, rows]), routes.counts, gate_ups)
    gate, up = tape.op_multi_out("Split", [by_expert], {"axis": -1, "num_outputs": 2}, num_outputs=2)
    hidden = tape.op("Mul", [tape.op("QuickGelu", [gate], {"alpha": 1.0}, domain=CONTRIB), up])  # SwiGLU
    by_expert = _products(tape, hidden, routes.counts, downs)
    by_route = tape.op("Gather", [by_expert, routes.places])
    by_row = tape.op("Reshape", [by_route, _integers(graph, -1, k, C)])
    weights = tape.op("Unsqueeze", [routes.weights, _integers(graph, -1)])
    weighted = tape.op("Mul", [by_row, weights])
    y = tape.op("ReduceSum", [weighted, _integers(graph, 1)], {"keepdims": 0})
    _replace(graph, moe, tape.nodes, y)


def _route(tape: Tape, graph: ir.Graph, logits: ir.Value | None, k: int, num_experts: int) -> _Routes:
    """The softmax over the k best experts is that over all, normalised."""
    best, experts = tape.op_multi_out("TopK", [logits, _integers(graph, k)], num_outputs=2)  # (N, k)
    experts = tape.op("Reshape", [experts, _integers(graph, -1)])
    is_chosen = tape.op("OneHot", [experts, _integers(graph, num_experts), _integers(graph, 0, 1)])
    order = _argsort(tape, experts)
    return _Routes(
        weights=tape.op("Softmax", [best], {"axis": -1}),
        counts=tape.op("ReduceSum", [is_chosen, _integers(graph, 0)], {"keepdims": 0}),
        order=order,
        places=_argsort(tape, order),
    )


def _argsort(tape: Tape, keys: ir.Value) -> ir.Value:
    _, order = tape.op_multi_out("TopK", [keys, tape.op("Shape", [keys])], {"largest": 0}, num_outputs=2)
    return order


def _products(tape: Tape, x: ir.Value, counts: ir.Value, matrices: list[ir.Value]) -> ir.Value:
    """Rows (N·k, K) that lie expert by expert, each by its expert's matrix (K, M) -> (N·k, M).

    A product of no rows costs what starting a node costs.
    """
    parts = tape.op_multi_out("Split", [x, counts], {"axis": 0}, num_outputs=len(matrices))
    products = [
        tape.op("MatMul", [part, matrix], name=f"{matrix.name}/product")
        for part, matrix in zip(parts, matrices, strict=True)
    ]
    return tape.op("Concat", products, {"axis": 0})


def _matrices(graph: ir.Graph, weights: ir.Value, as_columns: Columns) -> list[ir.Value]:
    """Each expert's matrix (K, M) as a constant of its own, made when it is written."""
    stored, name = weights.const_value, weights.name
    assert stored is not None
    assert name is not None
    shape = ir.Shape(as_columns(stored.numpy()[0]).shape)
    matrices = []
    for expert in range(len(stored.numpy())):
        make = partial(_matrix, stored, expert, as_columns)
        tensor = ir.LazyTensor(make, stored.dtype, shape, name=f"{name}.{expert}")
        matrices.append(ir.val(tensor.name, tensor.dtype, shape, const_value=tensor))
        graph.register_initializer(matrices[-1])
    return matrices


def _matrix(stored: ir.TensorProtocol, expert: int, as_columns: Columns) -> ir.TensorProtocol:
    return ir.tensor(np.ascontiguousarray(as_columns(stored.numpy()[expert])))


def _halves(gate_up: NDArray[Any]) -> NDArray[Any]:
    """Interleaved rows (2F, C) -> columns (C, 2F), the gate's before up's."""
    return np.concatenate([gate_up[0::2], gate_up[1::2]]).T


def _integers(graph: ir.Graph, *values: int) -> ir.Value:
    """A constant that all layers share."""
    name = "_".join(["integers", *map(str, values)])
    if name not in graph.initializers:
        tensor = ir.tensor(np.array(values, np.int64), name=name)
        graph.register_initializer(ir.val(name, tensor.dtype, [len(values)], const_value=tensor))
    return graph.initializers[name]


def _replace(graph: ir.Graph, moe: ir.Node, nodes: Sequence[ir.Node], y: ir.Value) -> None:
    """Put `nodes` in the place of `moe`, and their result `y` in that of its output."""
    for index, node in enumerate(nodes):
        node.name = node.name or f"{moe.name}/{index}"
    replaced = moe.outputs[0]
    y.name, y.type, y.shape = replaced.name, replaced.type, replaced.shape
    graph.insert_before(moe, nodes)
    replaced.replace_all_uses_with(y)
    graph.remove(moe, safe=True)

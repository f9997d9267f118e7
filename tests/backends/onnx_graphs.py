"""Small ONNX graphs made by hand: one property each."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, INT64, STRING = TensorProto.FLOAT, TensorProto.INT64, TensorProto.STRING
OPSET = 20

Port = tuple[str, int, Sequence[int | str]]


def write_graph(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    weights: Sequence[onnx.TensorProto] = (),
) -> Path:
    """Write a model of these parts to `path`, unchecked; returns `path`."""
    ports = [[helper.make_tensor_value_info(*port) for port in some] for some in (inputs, outputs)]
    graph = helper.make_graph(list(nodes), "graph", *ports, list(weights))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())
    return path


def weight(name: str, array: np.ndarray) -> onnx.TensorProto:
    return numpy_helper.from_array(array, name)


def affine(path: Path, *, dtype: int = FLOAT) -> Path:
    """y = 2x + 1 over rows of any number and width."""
    kind = helper.tensor_dtype_to_np_dtype(dtype)
    nodes = [
        helper.make_node("Mul", ["x", "two"], ["twice"]),
        helper.make_node("Add", ["twice", "one"], ["y"]),
    ]
    weights = [weight("two", np.array(2, kind)), weight("one", np.array(1, kind))]
    return write_graph(path, nodes, [("x", dtype, ["B", "N"])], [("y", dtype, ["B", "N"])], weights)


def same(path: Path, dtype: int) -> Path:
    """y = x of any type."""
    return write_graph(
        path,
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", dtype, ["B", "N"])],
        [("y", dtype, ["B", "N"])],
    )


def lookup(path: Path) -> Path:
    """Row `index` of a table of four: an index beyond it is a fault of the request."""
    table = np.arange(8, dtype=np.float32).reshape(4, 2)
    nodes = [helper.make_node("Gather", ["table", "index"], ["row"])]
    return write_graph(
        path, nodes, [("index", INT64, ["B", "N"])], [("row", FLOAT, ["B", "N", 2])], [weight("table", table)]
    )


def whole_mean(path: Path) -> Path:
    """The mean over *all* rows: a graph whose free first axis is no batch."""
    nodes = [helper.make_node("ReduceMean", ["x"], ["y"], keepdims=1)]
    return write_graph(path, nodes, [("x", FLOAT, ["B", "N"])], [("y", FLOAT, ["one", 1])])


def centred(path: Path) -> Path:
    """y = x less the mean row: as many rows as came in, and each depends on all."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "rows"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
    ]
    axes = [weight("rows", np.array([0]))]
    return write_graph(path, nodes, [("x", FLOAT, ["B", "N"])], [("y", FLOAT, ["B", "N"])], axes)


def scaled(path: Path) -> Path:
    """y = x · scale, with a scalar."""
    nodes = [helper.make_node("Mul", ["x", "scale"], ["y"])]
    return write_graph(
        path, nodes, [("x", FLOAT, ["B", "N"]), ("scale", FLOAT, [])], [("y", FLOAT, ["B", "N"])]
    )


def with_external(path: Path, location: str, *, in_node: bool = False, **entries: int) -> Path:
    """y = x + w, w of four floats in the file at `location`; `in_node` puts it into a Constant node."""
    tensor = TensorProto(name="w", data_type=FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in {"location": location, **entries}.items():
        tensor.external_data.add(key=key, value=str(value))
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    if in_node:
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    ports = [("x", FLOAT, ["B", 4])], [("y", FLOAT, ["B", 4])]
    return write_graph(path, nodes, *ports, [] if in_node else [tensor])

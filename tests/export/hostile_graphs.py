"""ONNX graphs that must be refused: weights where they may not be, broken files, and graphs that do harm."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper

from tests.backends import onnx_graphs
from tests.backends.onnx_graphs import FLOAT, INT64, weight, write_graph
from tests.export.hostile_inputs import Hostile

Writer = Callable[[Path], Path]


def external(location: str, **entries: int) -> Writer:
    def write(directory: Path) -> Path:
        (directory / "sub").mkdir()
        for path in (directory / "w.bin", directory / "sub" / "w.bin", directory.parent / "secret.bin"):
            np.ones(4, np.float32).tofile(path)
        (directory / "link.bin").symlink_to("../secret.bin")
        (directory / "up").symlink_to("..")
        return onnx_graphs.with_external(
            directory / "x.onnx", location.format(root=directory.parent), in_node=True, **entries
        )

    return write


def cut(share: float) -> Writer:
    def write(directory: Path) -> Path:
        path = onnx_graphs.lookup(directory / "x.onnx")
        path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
        return path

    return write


def bytes_for_a_name(directory: Path) -> Path:
    """Names the file of its weights in no encoding: protobuf gives such a string back as bytes."""
    path = external("w.bin")(directory)
    path.write_bytes(path.read_bytes().replace(b"w.bin", b"w\xffbin"))
    return path


def huge_result(directory: Path) -> Path:
    """Asks for a tensor of 4 TB."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["filled"]),
        helper.make_node("Add", ["x", "filled"], ["y"]),
    ]
    return write_graph(
        directory / "x.onnx",
        nodes,
        [("x", FLOAT, [1])],
        [("y", FLOAT, [None])],
        [weight("size", np.array([1 << 40]))],
    )


def huge_weight(directory: Path) -> Path:
    """Declares a weight of 4 TB and brings none of it."""
    tensor = weight("w", np.ones(1, np.float32))
    tensor.dims[:] = [1 << 40]
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    return write_graph(directory / "x.onnx", nodes, [("x", FLOAT, [1])], [("y", FLOAT, [None])], [tensor])


def cyclic(directory: Path) -> Path:
    nodes = [helper.make_node("Add", ["x", "b"], ["a"]), helper.make_node("Add", ["a", "x"], ["b"])]
    return write_graph(directory / "x.onnx", nodes, [("x", FLOAT, [1])], [("b", FLOAT, [1])])


def foreign_operator(directory: Path) -> Path:
    nodes = [helper.make_node("RunThis", ["x"], ["y"], domain="com.evil", command="touch code-ran")]
    return write_graph(directory / "x.onnx", nodes, [("x", FLOAT, [1])], [("y", FLOAT, [1])])


def dice(directory: Path) -> Path:
    """Answers differently every time."""
    nodes = [helper.make_node("RandomNormalLike", ["x"], ["y"])]
    return write_graph(directory / "x.onnx", nodes, [("x", FLOAT, ["B", 4])], [("y", FLOAT, ["B", 4])])


def needs_particular_input(directory: Path) -> Path:
    """A table of one row, which random indexes miss."""
    nodes = [
        helper.make_node("Sub", ["index", "far"], ["near"]),
        helper.make_node("Gather", ["table", "near"], ["y"]),
    ]
    weights = [weight("far", np.array(10**6)), weight("table", np.ones((1, 2), np.float32))]
    return write_graph(directory / "x.onnx", nodes, [("index", INT64, [1])], [("y", FLOAT, [1, 2])], weights)


def untransportable(directory: Path) -> Path:
    return onnx_graphs.same(directory / "x.onnx", TensorProto.BFLOAT16)


def text(content: bytes) -> Writer:
    def write(directory: Path) -> Path:
        (directory / "x.onnx").write_bytes(content)
        return directory / "x.onnx"

    return write


GRAPHS: dict[str, tuple[Writer, str]] = {
    "above": (external("../secret.bin"), "must be in a file of their own beside it"),
    "absolute": (external("{root}/secret.bin"), "must be in a file of their own beside it"),
    "below": (external("sub/w.bin"), "must be in a file of their own beside it"),
    "through": (external("sub/../../secret.bin"), "must be in a file of their own beside it"),
    "up a link": (external("up/secret.bin"), "must be in a file of their own beside it"),
    "a link": (external("link.bin"), "is a link out of the graph's directory"),
    "the report": (external("comparison.json"), "must be in a file of their own beside it"),
    "itself": (external("x.onnx"), "must be in a file of their own beside it"),
    "memory": (external("*/_ORT_MEM_ADDR_/*", offset=4096), "must be in a file of their own beside it"),
    "bytes for a name": (bytes_for_a_name, "has names that are not UTF-8"),
    "gone": (external("gone.bin"), "is missing, though x.onnx has weights in it"),
    "beyond the end": (external("w.bin", offset=8), "the graph can't be run: .*(out of bounds|External)"),
    "too long": (external("w.bin", length=1 << 40), "the graph can't be run: .*size mismatch"),
    "huge result": (huge_result, "the graph can't be run|takes no random input"),
    "huge weight": (huge_weight, "the graph can't be run"),
    "cycle": (cyclic, "the graph can't be run"),
    "foreign operator": (foreign_operator, "the graph can't be run: .*RunThis"),
    "dice": (dice, "differs from .* asked twice: off by"),
    "particular input": (needs_particular_input, "give it one with --example FILE.npz"),
    "bfloat16": (untransportable, r"x is a tensor\(bfloat16\)"),
    "empty": (text(b""), "as no known format does"),
    "not protobuf": (text(b"\x08\xff\xff\xff"), "as no known format does"),
    "no nodes": (text(b"\x08\x0a"), "as no known format does"),
    **{f"cut to {share}": (cut(share), ".") for share in (0.1, 0.5, 0.9, 0.99)},
}


def sound() -> Hostile:
    """The graph that `make fuzz` damages."""
    with tempfile.TemporaryDirectory() as name:
        return Hostile("sound", {"x.onnx": onnx_graphs.lookup(Path(name) / "x.onnx").read_bytes()}, "x.onnx")

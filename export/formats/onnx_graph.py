"""ONNX graphs by content: what a file says of its tensors, and which files its weights are in."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto

from export.errors import ExportError
from export.formats.graph_files import find_graph
from export.formats.weight_files import GRAPH, contents

MAX_GRAPH_BYTES = (1 << 31) - 1  # protobuf's own limit
# A ModelProto begins with a field of its own: ir_version, producer_name, …, functions.
FIRST_TAGS = frozenset(number << 3 | wire for number in range(1, 26) for wire in (0, 2))
# What is written beside a graph, and no file of its weights may be called.
RESERVED = (GRAPH, "comparison.json", "config.pbtxt", "manifest.json", "tokenizer.json")


@dataclass(frozen=True)
class GraphFile:
    """A graph without its external weights, and the files beside it that hold those."""

    path: Path
    model: ModelProto
    weights: tuple[Path, ...]

    @property
    def files(self) -> list[Path]:
        """All files that it is made of."""
        return [self.path, *self.weights]


def is_graph(path: Path) -> bool:
    """Whether the file at `path` parses as an ONNX model with nodes in it."""
    with path.open("rb") as file:
        head = file.read(1)
    if not head or head[0] not in FIRST_TAGS or path.stat().st_size > MAX_GRAPH_BYTES:
        return False
    try:
        model = onnx.load(path, load_external_data=False)
    except DecodeError:
        return False
    return bool(model.ir_version and model.graph.node and model.opset_import)


def read_graph(path: Path) -> GraphFile:
    """The graph in the file or directory at `path`; its weights stay where they are.

    Raises ExportError for weights outside the graph's own directory, and where files are missing.
    """
    found = find_graph(path)
    if found is None:
        raise ExportError(f"{path} holds no single graph, but {', '.join(contents(path))}; name the file")
    try:
        model = onnx.load(found, load_external_data=False)
    except DecodeError as error:
        raise ExportError(f"{found} is no whole ONNX model: fetch it again") from error
    if not _is_text(model):
        raise ExportError(f"{found} has names that are not UTF-8, so it is damaged: fetch it again")
    locations = sorted({_location(tensor) for tensor in tensors_in(model) if tensor.external_data})
    return GraphFile(found, model, tuple(_beside(found, location) for location in locations))


def _is_text(message: Message) -> bool:
    """Whether all strings in `message` are UTF-8; protobuf gives those that aren't back as bytes."""
    return all(_holds_text(field, value) for field, value in message.ListFields())


def _holds_text(field: FieldDescriptor, value: Any) -> bool:
    if field.type not in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_MESSAGE):
        return True
    values = value if field.is_repeated else (value,)
    return all(_is_text(one) if isinstance(one, Message) else isinstance(one, str) for one in values)


def tensors_in(model: ModelProto) -> Iterator[TensorProto]:
    """Every tensor of a model, those in attributes, subgraphs and functions included."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: GraphProto) -> Iterator[TensorProto]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[NodeProto]) -> Iterator[TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from _of_attribute(attribute)


def _of_attribute(attribute: AttributeProto) -> Iterator[TensorProto]:
    yield from (attribute.t, *attribute.tensors)
    for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
        yield from (sparse.values, sparse.indices)
    for graph in (attribute.g, *attribute.graphs):
        yield from _of_graph(graph)


def _location(tensor: TensorProto) -> str:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if "location" not in entries:
        raise ExportError(f"the weights of {tensor.name!r} are in another file, which is not named")
    return entries["location"]


def _beside(graph: Path, location: str) -> Path:
    """The file called `location`; ExportError unless it is a file in the graph's own directory."""
    path = graph.parent / location
    is_name = Path(location).name == location and location not in (graph.name, *RESERVED)
    if not is_name:
        raise ExportError(
            f"{graph} has weights in {location[:80]!r}; they must be in a file of their own beside it"
        )
    if not path.is_file():
        raise ExportError(f"{path} is missing, though {graph.name} has weights in it: fetch it again")
    if path.resolve().parent != graph.parent.resolve():
        raise ExportError(f"{path} is a link out of the graph's directory: put the file itself there")
    return path


def describe_port(value: ValueInfoProto) -> str:
    """`name float [batch, 16]`."""
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type"):
        return f"{value.name} (no tensor)"
    dims = [
        dim.dim_param or (str(dim.dim_value) if dim.HasField("dim_value") else "?") for dim in kind.shape.dim
    ]
    return f"{value.name} {TensorProto.DataType.Name(kind.elem_type).lower()} [{', '.join(dims)}]"

"""A graph's inputs and outputs, each with the type and shape that it must have."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from onnx import ModelProto, TensorProto, ValueInfoProto

from export.errors import ExportError

MOST_NAMED, LONGEST_NAME = 8, 80  # of names in a sentence

Sizes = list[int | None]
T = TypeVar("T", bound=str)


class Ports:
    """The inputs that are no weights, and the outputs, of the graph in `path`."""

    def __init__(self, path: Path, model: ModelProto) -> None:
        weights = {tensor.name for tensor in model.graph.initializer}
        self._path = path
        self.inputs: Mapping[str, ValueInfoProto] = {
            value.name: value for value in model.graph.input if value.name not in weights
        }
        self.outputs: Mapping[str, ValueInfoProto] = {value.name: value for value in model.graph.output}

    def refused(self, what: str) -> ExportError:
        """One sentence on what of the graph is not served."""
        return ExportError(f"{self._path} can't be served: {what}")

    def input(self, name: str) -> ValueInfoProto:
        """The input called `name`; ExportError lists those that there are."""
        return self._find(name, self.inputs, "takes")

    def output(self, name: str) -> ValueInfoProto:
        """The output called `name`; ExportError lists those that there are."""
        return self._find(name, self.outputs, "gives")

    def _find(self, name: str, ports: Mapping[str, ValueInfoProto], verb: str) -> ValueInfoProto:
        if name not in ports:
            raise self.refused(f"it {verb} no {shortened(name)}, but {listed(ports)}")
        return ports[name]

    def require_type(self, value: ValueInfoProto, allowed: Mapping[int, T]) -> T:
        """What `allowed` calls the type of `value`; ExportError for another one."""
        kind = value.type.tensor_type.elem_type
        if kind not in allowed:
            raise self.refused(
                f"{shortened(value.name)} is {type_name(value)}; {' or '.join(allowed.values())} is served"
            )
        return allowed[kind]

    def sizes(self, value: ValueInfoProto, axes: Sequence[str], free: Collection[int]) -> Sizes:
        """The size of each axis, None where it may be any, which it must be on the axes `free`."""
        sizes: Sizes = [
            dim.dim_value if dim.HasField("dim_value") else None for dim in value.type.tensor_type.shape.dim
        ]
        if len(sizes) != len(axes) or any(size is not None and size < 1 for size in sizes):
            raise self.refused(
                f"{shortened(value.name)} is shaped {sizes[:MOST_NAMED]}; [{', '.join(axes)}] is served"
            )
        for axis in free:
            if sizes[axis] is not None:
                raise self.refused(
                    f"{shortened(value.name)} is for {axes[axis]} = {sizes[axis]} only; any is needed"
                )
        return sizes


def type_name(value: ValueInfoProto) -> str:
    """ONNX's name of a tensor's type, in small letters."""
    kind = value.type.tensor_type.elem_type
    names = {number: name.lower() for name, number in TensorProto.DataType.items()}
    return names.get(kind, f"of the unknown type {kind}")


def listed(names: Iterable[str]) -> str:
    """A few of the names, for a sentence."""
    every = [shortened(name) for name in names]
    return ", ".join([*every[:MOST_NAMED], *(["…"] if len(every) > MOST_NAMED else [])]) or "nothing"


def shortened(name: str) -> str:
    """A name as long as a sentence bears."""
    return name if len(name) <= LONGEST_NAME else f"{name[:LONGEST_NAME]}…"

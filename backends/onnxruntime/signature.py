"""A graph's tensors in Triton's words, and how they and a configuration must agree."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.onnxruntime.errors import LoadError

Config = Mapping[str, Any]

# ONNX Runtime's name of a type → Triton's, and numpy's.
TYPES: Mapping[str, tuple[str, type[np.generic]]] = {
    "tensor(bool)": ("TYPE_BOOL", np.bool_),
    "tensor(uint8)": ("TYPE_UINT8", np.uint8),
    "tensor(uint16)": ("TYPE_UINT16", np.uint16),
    "tensor(uint32)": ("TYPE_UINT32", np.uint32),
    "tensor(uint64)": ("TYPE_UINT64", np.uint64),
    "tensor(int8)": ("TYPE_INT8", np.int8),
    "tensor(int16)": ("TYPE_INT16", np.int16),
    "tensor(int32)": ("TYPE_INT32", np.int32),
    "tensor(int64)": ("TYPE_INT64", np.int64),
    "tensor(float16)": ("TYPE_FP16", np.float16),
    "tensor(float)": ("TYPE_FP32", np.float32),
    "tensor(double)": ("TYPE_FP64", np.float64),
    "tensor(string)": ("TYPE_STRING", np.object_),
}

# What the native backend takes where a configuration leaves it open (Triton's default-max-batch-size).
DEFAULT_MAX_BATCH_SIZE = 4


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of a graph; -1 in `shape` is any size."""

    name: str
    type: str
    dtype: npt.DTypeLike
    shape: tuple[int, ...]

    @property
    def can_batch(self) -> bool:
        """Whether its first axis could be the batch."""
        return self.shape[:1] == (-1,)

    def dims(self, *, batches: bool) -> list[int]:
        """Triton's dims; a scalar has the dims [1], for Triton knows no empty ones."""
        return list(self.shape[batches:]) or [1]


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    @property
    def can_batch(self) -> bool:
        """Whether every tensor's first axis could be the batch."""
        return all(spec.can_batch for spec in (*self.inputs, *self.outputs))


def spec_of(value: Any) -> TensorSpec:
    """The spec of one of a session's inputs or outputs; LoadError for a type that Triton's Python lacks."""
    if value.type not in TYPES:
        raise LoadError(f"{value.name} is a {value.type}; Triton's Python can pass {', '.join(TYPES)}")
    kind, dtype = TYPES[value.type]
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape)
    return TensorSpec(value.name, kind, dtype, shape)


def complete(config: Any, signature: Signature) -> Any:
    """Fills in what a configuration leaves open, by the native backend's rules; returns `config`.

    A configuration that names inputs and outputs is left as it is.
    """
    given = config.as_dict()
    if given["input"] and given["output"]:
        return config
    max_batch_size = int(given["max_batch_size"])
    if max_batch_size and not signature.can_batch:
        raise LoadError(f"max_batch_size is {max_batch_size}, but the graph has no batch axis; set it to 0")
    if signature.can_batch:
        max_batch_size = max_batch_size or DEFAULT_MAX_BATCH_SIZE
        config.set_max_batch_size(max_batch_size)
        if max_batch_size > 1:
            config.set_dynamic_batching()
    batches = max_batch_size > 0
    for add, specs in ((config.add_input, signature.inputs), (config.add_output, signature.outputs)):
        for spec in specs:
            add({"name": spec.name, "data_type": spec.type, "dims": spec.dims(batches=batches)})
    return config


def check_config(config: Config, signature: Signature) -> None:
    """Raise LoadError unless the configuration's tensors are the graph's; outputs may be left out."""
    batches = int(config["max_batch_size"]) > 0
    if batches and not signature.can_batch:
        raise LoadError(
            f"max_batch_size is {config['max_batch_size']}, but not every tensor of the graph begins with a "
            "free axis; set it to 0"
        )
    _check("input", config["input"], signature.inputs, batches=batches)
    _check("output", config["output"], signature.outputs, batches=batches)
    missing = {spec.name for spec in signature.inputs} - {entry["name"] for entry in config["input"]}
    if missing:
        raise LoadError(f"config.pbtxt lacks the graph's inputs {', '.join(sorted(missing))}")


def _check(what: str, entries: Sequence[Config], specs: Sequence[TensorSpec], *, batches: bool) -> None:
    known = {spec.name: spec for spec in specs}
    for entry in entries:
        name = entry["name"]
        if name not in known:
            raise LoadError(f"config.pbtxt has the {what} {name!r}; the graph has {', '.join(known)}")
        spec = known[name]
        if entry["data_type"] != spec.type:
            raise LoadError(
                f"{what} {name} is {entry['data_type']} in config.pbtxt, {spec.type} in the graph"
            )
        dims = [int(size) for size in entry.get("reshape", {}).get("shape", entry["dims"])]
        if not _fits(dims, spec.shape[batches:]):
            theirs = spec.dims(batches=batches)
            raise LoadError(f"{what} {name} has the dims {dims} in config.pbtxt, {theirs} in the graph")


def _fits(dims: Sequence[int], shape: Sequence[int]) -> bool:
    """Whether tensors of `dims` may go where the graph says `shape`; no shape is a scalar, or unknown."""
    if not shape:
        return True
    return len(dims) == len(shape) and all(
        ours in (-1, given) for given, ours in zip(dims, shape, strict=True)
    )

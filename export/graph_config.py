"""`config.pbtxt` of a stateless graph: the native onnxruntime backend reads it as ours does."""

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export.errors import ExportError
from export.installed import CONFIG

BACKEND = "onnxruntime"
MAX_BATCH_SIZE = 32

# ONNX Runtime's name of a type → Triton's.
TYPES = {
    "tensor(bool)": "TYPE_BOOL",
    "tensor(uint8)": "TYPE_UINT8",
    "tensor(uint16)": "TYPE_UINT16",
    "tensor(uint32)": "TYPE_UINT32",
    "tensor(uint64)": "TYPE_UINT64",
    "tensor(int8)": "TYPE_INT8",
    "tensor(int16)": "TYPE_INT16",
    "tensor(int32)": "TYPE_INT32",
    "tensor(int64)": "TYPE_INT64",
    "tensor(float16)": "TYPE_FP16",
    "tensor(float)": "TYPE_FP32",
    "tensor(double)": "TYPE_FP64",
    "tensor(string)": "TYPE_STRING",
}


class Tensor(Protocol):
    """An input or output by ONNX Runtime's name of its type; -1 is any size."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def shape(self) -> tuple[int, ...]: ...


def graph_config(name: str, inputs: Iterable[Tensor], outputs: Iterable[Tensor], *, batches: bool) -> str:
    """One instance on the CPU; with `batches`, Triton puts requests together along the first axis."""
    config = triton.ModelConfig(name=name, backend=BACKEND, max_batch_size=MAX_BATCH_SIZE if batches else 0)
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    if batches:
        config.dynamic_batching.SetInParent()
    for fields, tensors in ((config.input, inputs), (config.output, outputs)):
        for tensor in tensors:
            # Triton knows no empty dims: a scalar travels as one axis.
            dims = list(tensor.shape[batches:]) or [1]
            field = fields.add(name=tensor.name, dims=dims)
            field.data_type = triton.DataType.Value(TYPES[tensor.type])
            if batches and len(tensor.shape) == 1:
                field.reshape.SetInParent()
    return text_format.MessageToString(config)


def require_no_other(target: Path, backend: str = BACKEND) -> None:
    """ExportError if the directory `target` holds a model of another backend, which would be replaced."""
    path = target / CONFIG
    if not path.is_file():
        return
    config = text_format.Parse(path.read_text("utf-8"), triton.ModelConfig())
    found = config.backend or config.platform
    if found != backend:
        raise ExportError(f"{target} is a model of the kind {found}: give this one another --name")

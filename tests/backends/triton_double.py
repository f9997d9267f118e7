"""A stand-in for Triton's Python module, for what the real server can't be made to do on demand."""

import types
from dataclasses import dataclass, field
from typing import Any

import numpy as np

FINAL = 1


@dataclass
class Tensor:
    label: str
    array: np.ndarray[Any, Any]

    def name(self) -> str:
        return self.label

    def as_numpy(self) -> np.ndarray[Any, Any]:
        return self.array


class TritonError(Exception):
    INVALID_ARG, UNAVAILABLE, INTERNAL = 1, 2, 3

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class InferenceResponse:
    tensors: list[Tensor] = field(default_factory=list)
    error: TritonError | None = None

    @property
    def values(self) -> dict[str, Any]:
        return {tensor.label: tensor.array.reshape(-1).tolist() for tensor in self.tensors}


@dataclass
class ResponseSender:
    sent: list[tuple[InferenceResponse, int]] = field(default_factory=list)
    checks: int = 0
    cancelled: bool = False

    def send(self, response: InferenceResponse, flags: int) -> None:
        assert not (self.sent and self.sent[-1][1]), "sent after FINAL"
        self.sent.append((response, flags))

    def is_cancelled(self) -> bool:
        self.checks += 1
        return self.cancelled


@dataclass
class InferenceRequest:
    tensors: dict[str, np.ndarray[Any, Any]]
    wanted: list[str]
    id: str = ""
    sender: ResponseSender = field(default_factory=ResponseSender)

    def inputs(self) -> list[Tensor]:
        return [Tensor(name, array) for name, array in self.tensors.items()]

    def request_id(self) -> str:
        return self.id

    def requested_output_names(self) -> list[str]:
        return self.wanted

    def get_response_sender(self) -> ResponseSender:
        return self.sender


class MetricFamily:
    COUNTER, GAUGE, HISTOGRAM = 0, 1, 2
    made: list["MetricFamily"]

    def __init__(self, name: str, description: str, kind: int) -> None:
        self.name, self.kind, self.values = name, kind, []  # type: ignore[var-annotated]
        MetricFamily.made.append(self)

    def Metric(  # noqa: N802 - Triton's name
        self,
        labels: dict[str, str],
        buckets: list[float] | None = None,
    ) -> "MetricFamily":
        self.labels, self.buckets = labels, buckets
        return self

    def record(self, value: float) -> None:
        self.values.append(value)

    increment = set = observe = record


class Config:
    """What auto-complete fills in."""

    def __init__(self) -> None:
        self.inputs: dict[str, dict[str, Any]] = {}
        self.outputs: dict[str, dict[str, Any]] = {}
        self.max_batch_size = -1
        self.policy: dict[str, bool] = {}

    def set_max_batch_size(self, size: int) -> None:
        self.max_batch_size = size

    def set_model_transaction_policy(self, policy: dict[str, bool]) -> None:
        self.policy = policy

    def add_input(self, tensor: dict[str, Any]) -> None:
        self.inputs[tensor["name"]] = tensor

    def add_output(self, tensor: dict[str, Any]) -> None:
        self.outputs[tensor["name"]] = tensor


def module() -> types.ModuleType:
    """A fresh `triton_python_backend_utils`; `unloaded` lists what was unloaded through it."""
    made = types.ModuleType("triton_python_backend_utils")
    MetricFamily.made = []
    unloaded: list[str] = []
    parts: dict[str, Any] = {
        "Tensor": Tensor,
        "TritonError": TritonError,
        "InferenceResponse": InferenceResponse,
        "MetricFamily": MetricFamily,
        "TRITONSERVER_RESPONSE_COMPLETE_FINAL": FINAL,
        "Logger": types.SimpleNamespace(log_error=unloaded.append),
        "unloaded": unloaded,
        "unload_model": unloaded.append,
        "get_input_tensor_by_name": lambda request, name: next(
            (tensor for tensor in request.inputs() if tensor.name() == name), None
        ),
    }
    vars(made).update(parts)
    return made

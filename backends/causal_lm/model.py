"""Triton's side of the engine: requests in, responses out; everything else is in the modules beside."""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb

from backends.causal_lm.engine import load_engine
from backends.causal_lm.request import GenerationRequest, Output, RequestError
from backends.causal_lm.settings import EngineSettings
from backends.causal_lm.tensors import arrays_from, declare, value_of
from backends.causal_lm.triton_metrics import TritonMetrics

# The contract's codes as names of Triton's; looked up late, because auto-complete runs without them.
ERROR_CODES = {
    "invalid": "INVALID_ARG",
    "overloaded": "UNAVAILABLE",
    "unavailable": "UNAVAILABLE",
    "internal": "INTERNAL",
}


class ResponseSink:
    """One request's responses on their way out; the last one carries FINAL."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._wanted = frozenset(request.requested_output_names())

    def send(self, output: Output, final: bool) -> None:
        arrays = arrays_from(output).items()
        tensors = [pb.Tensor(name, array) for name, array in arrays if name in self._wanted]
        self._sender.send(
            pb.InferenceResponse(tensors), pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        )

    def fail(self, code: str, message: str) -> None:
        error = pb.TritonError(message, getattr(pb.TritonError, ERROR_CODES[code]))
        self._finish(pb.InferenceResponse(error=error))

    def end_empty(self) -> None:
        self._finish(pb.InferenceResponse([]))

    def is_cancelled(self) -> bool:
        return bool(self._sender.is_cancelled())

    def _finish(self, response: Any) -> None:
        self._sender.send(response, pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declares the tensors, so that config.pbtxt need not."""
        return declare(config)

    def initialize(self, arguments: dict[str, str]) -> None:
        name, version = arguments["model_name"], arguments["model_version"]
        parameters = json.loads(arguments["model_config"])["parameters"]
        settings = EngineSettings.from_parameters(
            {key: value["string_value"] for key, value in parameters.items()}
        )
        self.metrics = TritonMetrics({"model": name, "version": version})
        self.engine = load_engine(Path(arguments["model_repository"]) / version, settings, self.metrics)

    def execute(self, requests: list[Any]) -> None:
        """Hands the requests to the engine's thread and returns at once; no request's fault reaches the others."""
        for request in requests:
            sink = ResponseSink(request)
            try:
                self.accept(request.request_id(), input_values(request), sink)
            except RequestError as error:
                sink.fail("invalid", str(error))

    def accept(self, request_id: str, values: dict[str, object], sink: ResponseSink) -> None:
        if not values.pop("stop", False):
            self.engine.submit(GenerationRequest.from_values(request_id, values, self.engine.manifest), sink)
        elif not request_id:
            raise RequestError(
                "stop", "true was given without a request id; the id says which request to cancel"
            )
        else:
            self.engine.cancel(request_id)
            sink.end_empty()

    def finalize(self) -> None:
        self.engine.close()
        self.metrics.close()


def input_values(request: Any) -> dict[str, object]:
    return {tensor.name(): value_of(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}

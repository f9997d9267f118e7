"""Triton's side of the engine: requests in, responses out; everything else is in the rooms beside."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb

from backends.causal_lm.loading import load_engine
from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.requests.request import GenerationRequest, RequestError
from backends.causal_lm.settings import EngineSettings
from backends.causal_lm.triton.response_sink import ResponseSink
from backends.causal_lm.triton.tensors import check_declared, declare, value_of
from backends.causal_lm.triton.triton_metrics import TritonMetrics

HEALTH_SECONDS = 1.0


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declares the tensors, so that config.pbtxt need not."""
        return declare(config)

    def initialize(self, arguments: dict[str, str]) -> None:
        name, version = arguments["model_name"], arguments["model_version"]
        config = json.loads(arguments["model_config"])
        parameters = {key: value["string_value"] for key, value in config["parameters"].items()}
        settings = EngineSettings.from_server(parameters, os.environ)
        self.metrics = TritonMetrics({"model": name, "version": version})
        try:
            directory = Path(arguments["model_repository"]) / version
            check_declared(config, read_manifest(directory / "manifest.json").extra_outputs)
            self.engine = load_engine(directory, settings, self.metrics)
        except BaseException:
            self.metrics.close()
            raise
        self.finalizing = threading.Event()
        threading.Thread(target=self.watch, args=(name,), name="health", daemon=True).start()

    def watch(self, name: str) -> None:
        """Takes the model off the server when its engine has died, so that readiness tells."""
        while not self.finalizing.wait(HEALTH_SECONDS):
            if not self.engine.healthy:
                pb.Logger.log_error(f"the engine of {name} has died; the model is unloaded, load it again")
                pb.unload_model(name)
                return

    def is_ready(self) -> bool:
        """Asked by Triton 2.66 and later only; see backends/README.md for what older ones do."""
        return self.engine.healthy

    def execute(self, requests: list[Any]) -> None:
        """Hands the requests to the engine's thread; one request's fault does not reach the others."""
        for request in requests:
            sink = ResponseSink(request)
            try:
                self.accept(request.request_id(), input_values(request), sink)
            except RequestError as error:
                sink.fail("invalid", str(error))
            except Exception as error:
                sink.fail("internal", f"internal: engine: {error!r}")

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
        self.finalizing.set()
        self.engine.close()
        self.metrics.close()


def input_values(request: Any) -> dict[str, object]:
    return {tensor.name(): value_of(tensor.name(), tensor.as_numpy()) for tensor in request.inputs()}

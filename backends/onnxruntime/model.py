"""Triton's side of the backend for stateless ONNX graphs: requests in, responses out."""

import json
from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb

from backends.onnxruntime.batching import Answer, Call, answer_all
from backends.onnxruntime.errors import GraphError
from backends.onnxruntime.graph import Graph
from backends.onnxruntime.signature import check_config, complete

DEFAULT_GRAPH = "model.onnx"


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declares the graph's tensors and, if it can batch, that it does."""
        return complete(config, Graph(graph_of_this_process(), config.as_dict()).signature)

    def initialize(self, arguments: dict[str, str]) -> None:
        config = json.loads(arguments["model_config"])
        directory = Path(arguments["model_repository"]) / arguments["model_version"]
        self.graph = Graph(directory / (config["default_model_filename"] or DEFAULT_GRAPH), config)
        check_config(config, self.graph.signature)
        self.batches = config["max_batch_size"] > 0

    def execute(self, requests: list[Any]) -> list[Any]:
        calls = [
            Call(
                feeds={tensor.name(): tensor.as_numpy() for tensor in request.inputs()},
                wanted=tuple(request.requested_output_names()),
            )
            for request in requests
        ]
        return [response_from(answer) for answer in answer_all(self.graph, calls, batches=self.batches)]


def graph_of_this_process() -> Path:
    """The graph that Triton started this process for; auto-complete is told of it in no other way.

    The stub's first argument is VERSION_DIRECTORY/default_model_filename.
    """
    return Path(Path("/proc/self/cmdline").read_bytes().split(b"\0")[1].decode())


def response_from(answer: Answer) -> Any:
    if isinstance(answer, GraphError):
        code = pb.TritonError.INVALID_ARG if answer.code == "invalid" else pb.TritonError.INTERNAL
        return pb.InferenceResponse(error=pb.TritonError(str(answer), code))
    return pb.InferenceResponse([pb.Tensor(name, array) for name, array in answer.items()])

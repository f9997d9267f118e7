"""Triton's side of the tokenizer backend: tensors in, tensors out."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from backends.tokenizer.errors import PromptError
from backends.tokenizer.prompt import Prompt, load_prompt_builder

INPUTS = ("text_input", "messages")


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declares the tensors, so that config.pbtxt need not."""
        config.set_max_batch_size(1)
        for name in INPUTS:
            config.add_input({"name": name, "data_type": "TYPE_STRING", "dims": [1], "optional": True})
        config.add_output({"name": "input_ids", "data_type": "TYPE_INT32", "dims": [-1]})
        config.add_output({"name": "prompt", "data_type": "TYPE_STRING", "dims": [1]})
        return config

    def initialize(self, arguments: dict[str, str]) -> None:
        self.builder = load_prompt_builder(Path(arguments["model_repository"]) / arguments["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        try:
            prompt = self.builder.build(*(first_bytes(request, name) for name in INPUTS))
        except PromptError as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error), error_code(error)))
        return pb.InferenceResponse(output_tensors(prompt))


def first_bytes(request: Any, name: str) -> bytes | None:
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else bytes(tensor.as_numpy().reshape(-1)[0])


def output_tensors(prompt: Prompt) -> list[Any]:
    text = np.array([[prompt.text.encode()]], dtype=np.object_)
    return [pb.Tensor("input_ids", prompt.input_ids[None]), pb.Tensor("prompt", text)]


def error_code(error: PromptError) -> int:
    code: int = pb.TritonError.INVALID_ARG if error.code == "invalid" else pb.TritonError.INTERNAL
    return code

"""Triton's side of the tokenizer backend: tensors in, tensors out."""

from pathlib import Path
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from backends.tokenizer.errors import PromptError
from backends.tokenizer.prompt import Prompt, load_prompt_builder

# name → Triton's type and dims
INPUTS = {
    "text_input": ("TYPE_STRING", [1]),
    "messages": ("TYPE_STRING", [1]),
    "tools": ("TYPE_STRING", [1]),
    "evidence": ("TYPE_STRING", [-1]),
    "num_permutations": ("TYPE_INT32", [1]),
    "seed": ("TYPE_UINT64", [1]),
}
OUTPUTS = {
    "input_ids": ("TYPE_INT32", [-1]),
    "prompt_lengths": ("TYPE_INT32", [-1]),
    "prompt": ("TYPE_STRING", [1]),
}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declares the tensors, so that config.pbtxt need not."""
        config.set_max_batch_size(1)
        for name, (kind, dims) in INPUTS.items():
            config.add_input({"name": name, "data_type": kind, "dims": dims, "optional": True})
        for name, (kind, dims) in OUTPUTS.items():
            config.add_output({"name": name, "data_type": kind, "dims": dims})
        return config

    def initialize(self, arguments: dict[str, str]) -> None:
        self.builder = load_prompt_builder(Path(arguments["model_repository"]) / arguments["model_version"])

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        try:
            prompts = self.builder.build(**input_values(request))
        except PromptError as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error), error_code(error)))
        return pb.InferenceResponse(output_tensors(prompts))


def input_values(request: Any) -> dict[str, Any]:
    """What was sent: a list for a tensor of any length, else its only value."""
    values = {tensor.name(): tensor.as_numpy().reshape(-1).tolist() for tensor in request.inputs()}
    return {name: value if INPUTS[name][1] == [-1] else value[0] for name, value in values.items()}


def output_tensors(prompts: list[Prompt]) -> list[Any]:
    """The prompts' ids joined, how many are whose, and the first one's text."""
    arrays = {
        "input_ids": np.concatenate([prompt.input_ids for prompt in prompts])[None],
        "prompt_lengths": np.array([[len(prompt.input_ids) for prompt in prompts]], dtype=np.int32),
        "prompt": np.array([[prompts[0].text.encode()]], dtype=np.object_),
    }
    return [pb.Tensor(name, array) for name, array in arrays.items()]


def error_code(error: PromptError) -> int:
    code: int = pb.TritonError.INVALID_ARG if error.code == "invalid" else pb.TritonError.INTERNAL
    return code

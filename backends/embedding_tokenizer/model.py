"""Triton's side of the tokenizer for embeddings: texts in, rows of token ids out."""

from pathlib import Path
from typing import Any

import triton_python_backend_utils as pb

from backends.embedding_tokenizer.texts import TextError, load_text_encoder

OUTPUTS = {
    "input_ids": ("TYPE_INT64", [-1]),
    "attention_mask": ("TYPE_INT64", [-1]),
    "num_tokens": ("TYPE_INT32", [1]),
}


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config: Any) -> Any:
        """Declares the tensors, so that config.pbtxt need not."""
        config.add_input({"name": "text_input", "data_type": "TYPE_STRING", "dims": [1]})
        config.add_input({"name": "truncate", "data_type": "TYPE_BOOL", "dims": [1], "optional": True})
        for name, (kind, dims) in OUTPUTS.items():
            config.add_output({"name": name, "data_type": kind, "dims": dims})
        return config

    def initialize(self, arguments: dict[str, str]) -> None:
        directory = Path(arguments["model_repository"]) / arguments["model_version"]
        self.encoder = load_text_encoder(directory)

    def execute(self, requests: list[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        inputs = {tensor.name(): tensor.as_numpy().reshape(-1).tolist() for tensor in request.inputs()}
        try:
            rows = self.encoder.encode(inputs["text_input"], truncate=any(inputs.get("truncate", [])))
        except TextError as error:
            return pb.InferenceResponse(error=pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        return pb.InferenceResponse(
            [
                pb.Tensor("input_ids", rows.input_ids),
                pb.Tensor("attention_mask", rows.attention_mask),
                pb.Tensor("num_tokens", rows.num_tokens[:, None]),
            ]
        )

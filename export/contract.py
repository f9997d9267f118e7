"""The tensors of an ensemble and how its two steps share them (model_repository/README.md)."""

from typing import Literal, NamedTuple

Type = Literal["TYPE_STRING", "TYPE_INT32", "TYPE_UINT64", "TYPE_FP32", "TYPE_BOOL"]


class TensorSpec(NamedTuple):
    """Triton's type and the dims behind the batch axis; -1 is any length."""

    type: Type
    dims: tuple[int, ...] = (1,)


PROMPT_INPUTS: dict[str, TensorSpec] = {
    "text_input": TensorSpec("TYPE_STRING"),
    "messages": TensorSpec("TYPE_STRING"),
}

GENERATION_INPUTS: dict[str, TensorSpec] = {
    "max_tokens": TensorSpec("TYPE_INT32"),
    "min_tokens": TensorSpec("TYPE_INT32"),
    "stop_words": TensorSpec("TYPE_STRING", (-1,)),
    "temperature": TensorSpec("TYPE_FP32"),
    "top_k": TensorSpec("TYPE_INT32"),
    "top_p": TensorSpec("TYPE_FP32"),
    "min_p": TensorSpec("TYPE_FP32"),
    "repetition_penalty": TensorSpec("TYPE_FP32"),
    "presence_penalty": TensorSpec("TYPE_FP32"),
    "frequency_penalty": TensorSpec("TYPE_FP32"),
    "seed": TensorSpec("TYPE_UINT64"),
    "logit_bias": TensorSpec("TYPE_STRING"),
    "stream": TensorSpec("TYPE_BOOL"),
    "exclude_input_in_output": TensorSpec("TYPE_BOOL"),
    "return_log_probs": TensorSpec("TYPE_BOOL"),
    "num_log_probs": TensorSpec("TYPE_INT32"),
}

# What the tokenizer step gives to the engine step.
TOKENIZED = ("input_ids", "prompt")

OUTPUTS: dict[str, TensorSpec] = {
    "text_output": TensorSpec("TYPE_STRING"),
    "output_ids": TensorSpec("TYPE_INT32", (-1,)),
    "finish_reason": TensorSpec("TYPE_STRING"),
    "stop_reason": TensorSpec("TYPE_STRING"),
    "num_input_tokens": TensorSpec("TYPE_INT32"),
    "num_output_tokens": TensorSpec("TYPE_INT32"),
    "cum_log_probs": TensorSpec("TYPE_FP32"),
    "output_log_probs": TensorSpec("TYPE_FP32", (-1,)),
    "top_log_probs": TensorSpec("TYPE_STRING"),
    "timings": TensorSpec("TYPE_STRING"),
}


def engine_name(model: str) -> str:
    """The engine's directory in the repository."""
    return f"{model}_engine"


def tokenizer_name(model: str) -> str:
    """The tokenizer's directory in the repository."""
    return f"{model}_tokenizer"

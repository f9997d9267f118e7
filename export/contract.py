"""The tensors of an ensemble and how its two steps share them (model_repository/README.md)."""

from collections.abc import Collection
from typing import Literal, NamedTuple

from export.errors import ExportError

Type = Literal["TYPE_STRING", "TYPE_INT32", "TYPE_UINT64", "TYPE_FP32", "TYPE_BOOL"]


class TensorSpec(NamedTuple):
    """Triton's type and the dims behind the batch axis; -1 is any length."""

    type: Type
    dims: tuple[int, ...] = (1,)


PROMPT_INPUTS: dict[str, TensorSpec] = {
    "text_input": TensorSpec("TYPE_STRING"),
    "messages": TensorSpec("TYPE_STRING"),
    "tools": TensorSpec("TYPE_STRING"),
    "evidence": TensorSpec("TYPE_STRING", (-1,)),
    "num_permutations": TensorSpec("TYPE_INT32"),
}

GENERATION_INPUTS: dict[str, TensorSpec] = {
    "max_tokens": TensorSpec("TYPE_INT32"),
    "min_tokens": TensorSpec("TYPE_INT32"),
    "min_length": TensorSpec("TYPE_INT32"),
    "stop_words": TensorSpec("TYPE_STRING", (-1,)),
    "bad_words": TensorSpec("TYPE_STRING", (-1,)),
    "temperature": TensorSpec("TYPE_FP32"),
    "top_k": TensorSpec("TYPE_INT32"),
    "top_p": TensorSpec("TYPE_FP32"),
    "min_p": TensorSpec("TYPE_FP32"),
    "repetition_penalty": TensorSpec("TYPE_FP32"),
    "presence_penalty": TensorSpec("TYPE_FP32"),
    "frequency_penalty": TensorSpec("TYPE_FP32"),
    "seed": TensorSpec("TYPE_UINT64"),
    "logit_bias": TensorSpec("TYPE_STRING"),
    "guided_decoding_guide_type": TensorSpec("TYPE_STRING"),
    "guided_decoding_guide": TensorSpec("TYPE_STRING"),
    "sampling_parameters": TensorSpec("TYPE_STRING"),
    "stream": TensorSpec("TYPE_BOOL"),
    "exclude_input_in_output": TensorSpec("TYPE_BOOL"),
    "return_log_probs": TensorSpec("TYPE_BOOL"),
    "num_log_probs": TensorSpec("TYPE_INT32"),
    "return_num_input_tokens": TensorSpec("TYPE_BOOL"),
    "return_num_output_tokens": TensorSpec("TYPE_BOOL"),
    "session_id": TensorSpec("TYPE_STRING"),
    "priority": TensorSpec("TYPE_INT32"),
    "timeout": TensorSpec("TYPE_INT32"),
    "user": TensorSpec("TYPE_STRING"),
}

# What goes to both steps: the orders of the evidence follow from the seed, too.
SHARED = ("seed",)

# What the tokenizer step gives to the engine step.
TOKENIZED = ("input_ids", "prompt_lengths", "prompt")

OUTPUTS: dict[str, TensorSpec] = {
    "text_output": TensorSpec("TYPE_STRING"),
    "output_ids": TensorSpec("TYPE_INT32", (-1,)),
    "finish_reason": TensorSpec("TYPE_STRING"),
    "stop_reason": TensorSpec("TYPE_STRING"),
    "num_input_tokens": TensorSpec("TYPE_INT32"),
    "num_output_tokens": TensorSpec("TYPE_INT32"),
    "num_cached_tokens": TensorSpec("TYPE_INT32"),
    "cum_log_probs": TensorSpec("TYPE_FP32"),
    "output_log_probs": TensorSpec("TYPE_FP32", (-1,)),
    "top_log_probs": TensorSpec("TYPE_STRING"),
    "timings": TensorSpec("TYPE_STRING"),
}

# Of models that tell them: the tensor, and the graph's extra outputs that it carries.
EXTRA_OUTPUTS: dict[str, TensorSpec] = {
    "uncertainty": TensorSpec("TYPE_STRING"),
    "cot_budget": TensorSpec("TYPE_INT32"),
}
CARRIED: dict[str, tuple[str, ...]] = {
    "uncertainty": ("confidence", "epistemic", "aleatoric"),
    "cot_budget": ("thought_budget",),
}


def extra_tensors(figures: Collection[str]) -> dict[str, TensorSpec]:
    """The outputs that carry a graph's extra outputs `figures`; ExportError for one that none carries."""
    known = [name for names in CARRIED.values() for name in names]
    if unknown := sorted(set(figures) - set(known)):
        raise ExportError(
            f"the model tells {', '.join(unknown)}, which no tensor carries; known are {', '.join(known)}"
        )
    return {tensor: spec for tensor, spec in EXTRA_OUTPUTS.items() if set(CARRIED[tensor]) & set(figures)}


def engine_name(model: str) -> str:
    """The engine's directory in the repository."""
    return f"{model}_engine"


def tokenizer_name(model: str) -> str:
    """The tokenizer's directory in the repository."""
    return f"{model}_tokenizer"

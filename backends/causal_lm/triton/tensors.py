"""The engine's tensors as declared to Triton, and their way from and to plain values."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.causal_lm.figures import Uncertainty, tensors_for
from backends.causal_lm.manifest import LoadError
from backends.causal_lm.requests.request import Output

# name → Triton's type and dims; a leading batch axis of 1 comes on top.
# All are optional to Triton: the engine itself says what is missing, in the contract's form.
INPUTS: Mapping[str, tuple[str, list[int]]] = {
    "input_ids": ("TYPE_INT32", [-1]),
    "prompt_lengths": ("TYPE_INT32", [-1]),
    "prompt": ("TYPE_STRING", [1]),
    "max_tokens": ("TYPE_INT32", [1]),
    "min_tokens": ("TYPE_INT32", [1]),
    "min_length": ("TYPE_INT32", [1]),
    "stop_words": ("TYPE_STRING", [-1]),
    "bad_words": ("TYPE_STRING", [-1]),
    "temperature": ("TYPE_FP32", [1]),
    "top_k": ("TYPE_INT32", [1]),
    "top_p": ("TYPE_FP32", [1]),
    "min_p": ("TYPE_FP32", [1]),
    "repetition_penalty": ("TYPE_FP32", [1]),
    "presence_penalty": ("TYPE_FP32", [1]),
    "frequency_penalty": ("TYPE_FP32", [1]),
    "seed": ("TYPE_UINT64", [1]),
    "logit_bias": ("TYPE_STRING", [1]),
    "guided_decoding_guide_type": ("TYPE_STRING", [1]),
    "guided_decoding_guide": ("TYPE_STRING", [1]),
    "sampling_parameters": ("TYPE_STRING", [1]),
    "stream": ("TYPE_BOOL", [1]),
    "exclude_input_in_output": ("TYPE_BOOL", [1]),
    "return_log_probs": ("TYPE_BOOL", [1]),
    "num_log_probs": ("TYPE_INT32", [1]),
    "return_num_input_tokens": ("TYPE_BOOL", [1]),
    "return_num_output_tokens": ("TYPE_BOOL", [1]),
    "session_id": ("TYPE_STRING", [1]),
    "priority": ("TYPE_INT32", [1]),
    "timeout": ("TYPE_INT32", [1]),
    "user": ("TYPE_STRING", [1]),
    "stop": ("TYPE_BOOL", [1]),
}

OUTPUTS: Mapping[str, tuple[str, list[int]]] = {
    "text_output": ("TYPE_STRING", [1]),
    "output_ids": ("TYPE_INT32", [-1]),
    "finish_reason": ("TYPE_STRING", [1]),
    "stop_reason": ("TYPE_STRING", [1]),
    "num_input_tokens": ("TYPE_INT32", [1]),
    "num_output_tokens": ("TYPE_INT32", [1]),
    "num_cached_tokens": ("TYPE_INT32", [1]),
    "cum_log_probs": ("TYPE_FP32", [1]),
    "output_log_probs": ("TYPE_FP32", [-1]),
    "top_log_probs": ("TYPE_STRING", [1]),
    "timings": ("TYPE_STRING", [1]),
}

# Of the models that tell them; their config.pbtxt declares them (model_repository/README.md).
EXTRA_OUTPUTS: Mapping[str, tuple[str, list[int]]] = {
    "uncertainty": ("TYPE_STRING", [1]),
    "cot_budget": ("TYPE_INT32", [1]),
}

Array = npt.NDArray[Any]
_DIGITS = 6  # of a float32's seven


def declare(config: Any) -> Any:
    """Puts the tensors and the way of answering into a model's configuration (auto-complete)."""
    config.set_max_batch_size(1)
    config.set_model_transaction_policy({"decoupled": True})
    for name, (kind, dims) in INPUTS.items():
        config.add_input({"name": name, "data_type": kind, "dims": dims, "optional": True})
    for name, (kind, dims) in OUTPUTS.items():
        config.add_output({"name": name, "data_type": kind, "dims": dims})
    return config


def check_declared(config: Mapping[str, Any], figures: Collection[str]) -> None:
    """Raise LoadError unless a configuration declares exactly the tensors that carry the `figures`."""
    declared = {output["name"] for output in config["output"]} & EXTRA_OUTPUTS.keys()
    told = tensors_for(figures)
    if declared != told:
        raise LoadError(
            f"config.pbtxt declares the extra outputs {sorted(declared)}, manifest.json {sorted(told)}; "
            "export the model again"
        )


def value_of(name: str, array: Array) -> object:
    """One input (1, ...) → scalar, list of bytes, or numbers (N,), as the input's dims say."""
    flat = array.reshape(-1)
    if INPUTS[name][1] == [1]:
        return flat[0].item() if isinstance(flat[0], np.generic) else flat[0]
    return flat.tolist() if INPUTS[name][0] == "TYPE_STRING" else flat


def arrays_from(output: Output) -> dict[str, Array]:
    """All outputs of one response, each with its leading axis of 1."""
    return {
        "text_output": string(output.text),
        "output_ids": np.array([output.token_ids], dtype=np.int32),
        "finish_reason": string(output.finish_reason),
        "stop_reason": string(output.stop_reason),
        "num_input_tokens": np.array([[output.num_input_tokens]], dtype=np.int32),
        "num_output_tokens": np.array([[output.num_output_tokens]], dtype=np.int32),
        "num_cached_tokens": np.array([[output.num_cached_tokens]], dtype=np.int32),
        "cum_log_probs": np.array([[output.cum_log_prob]], dtype=np.float32),
        "output_log_probs": np.array([output.log_probs], dtype=np.float32),
        "top_log_probs": string(json.dumps([dict(entry) for entry in output.top_log_probs])),
        "timings": string(timings_json(output)),
    } | extra_arrays(output)


def extra_arrays(output: Output) -> dict[str, Array]:
    """What the model tells of itself, if it does."""
    arrays = {}
    if output.uncertainty is not None:
        arrays["uncertainty"] = string(uncertainty_json(output.uncertainty))
    if output.cot_budget is not None:
        arrays["cot_budget"] = np.array([[output.cot_budget]], dtype=np.int32)
    return arrays


def string(text: str) -> Array:
    return np.array([[text.encode()]], dtype=np.object_)


def timings_json(output: Output) -> str:
    """Empty before the last response."""
    timings = output.timings
    if timings is None:
        return ""
    return json.dumps(
        {"queue_ns": timings.queue_ns, "prefill_ns": timings.prefill_ns, "decode_ns": timings.decode_ns}
    )


def uncertainty_json(uncertainty: Uncertainty) -> str:
    """`{"tokens": {figure: [one per id in output_ids]}, "mean": {figure: number} or null}`."""
    tokens = {name: [short(value) for value in column] for name, column in uncertainty.tokens.items()}
    mean = uncertainty.mean and {name: short(value) for name, value in uncertainty.mean.items()}
    return json.dumps({"tokens": tokens, "mean": mean})


def short(value: float) -> float:
    return float(f"{value:.{_DIGITS}g}")

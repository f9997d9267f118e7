"""The wire contract: tensor names, types and shapes as data, and the two messages made of them.

The text of the contract is `model_repository/README.md`; a test compares these tables with a running server.
"""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal, NamedTuple, cast

ErrorCode = Literal["invalid", "overloaded", "timeout", "unavailable", "internal", "not_found"]


class Tensor(NamedTuple):
    """A tensor without its leading batch axis: Triton's type name, and its length (-1 is any)."""

    datatype: str
    size: int


_SHARED_INPUTS = {
    "max_tokens": Tensor("INT32", 1),
    "min_tokens": Tensor("INT32", 1),
    "min_length": Tensor("INT32", 1),
    "stop_words": Tensor("BYTES", -1),
    "bad_words": Tensor("BYTES", -1),
    "temperature": Tensor("FP32", 1),
    "top_k": Tensor("INT32", 1),
    "top_p": Tensor("FP32", 1),
    "min_p": Tensor("FP32", 1),
    "repetition_penalty": Tensor("FP32", 1),
    "presence_penalty": Tensor("FP32", 1),
    "frequency_penalty": Tensor("FP32", 1),
    "seed": Tensor("UINT64", 1),
    "logit_bias": Tensor("BYTES", 1),
    "guided_decoding_guide_type": Tensor("BYTES", 1),
    "guided_decoding_guide": Tensor("BYTES", 1),
    "sampling_parameters": Tensor("BYTES", 1),
    "stream": Tensor("BOOL", 1),
    "exclude_input_in_output": Tensor("BOOL", 1),
    "return_log_probs": Tensor("BOOL", 1),
    "num_log_probs": Tensor("INT32", 1),
    "return_num_input_tokens": Tensor("BOOL", 1),
    "return_num_output_tokens": Tensor("BOOL", 1),
    "session_id": Tensor("BYTES", 1),
    "priority": Tensor("INT32", 1),
    "timeout": Tensor("INT32", 1),
    "user": Tensor("BYTES", 1),
}

INPUTS = {
    "text_input": Tensor("BYTES", 1),
    "messages": Tensor("BYTES", 1),
    "tools": Tensor("BYTES", 1),
    "evidence": Tensor("BYTES", -1),
    "num_permutations": Tensor("INT32", 1),
    **_SHARED_INPUTS,
}
"""Inputs of the ensemble `NAME`."""

ENGINE_INPUTS = {
    "input_ids": Tensor("INT32", -1),
    "prompt_lengths": Tensor("INT32", -1),
    "prompt": Tensor("BYTES", 1),
    **_SHARED_INPUTS,
    "stop": Tensor("BOOL", 1),
}
"""Inputs of the step `NAME_engine`."""

OUTPUTS = {
    "text_output": Tensor("BYTES", 1),
    "output_ids": Tensor("INT32", -1),
    "finish_reason": Tensor("BYTES", 1),
    "stop_reason": Tensor("BYTES", 1),
    "num_input_tokens": Tensor("INT32", 1),
    "num_output_tokens": Tensor("INT32", 1),
    "num_cached_tokens": Tensor("INT32", 1),
    "cum_log_probs": Tensor("FP32", 1),
    "output_log_probs": Tensor("FP32", -1),
    "top_log_probs": Tensor("BYTES", 1),
    "timings": Tensor("BYTES", 1),
}
"""Outputs of both."""

EXTRA_OUTPUTS = {"uncertainty": Tensor("BYTES", 1), "cot_budget": Tensor("INT32", 1)}
"""Further outputs of both, of the models that tell them."""

_JSON_TENSORS = frozenset({"messages", "tools", "logit_bias", "top_log_probs", "timings", "uncertainty"})
_EMPTY: dict[str, Any] = {"timings": {}, "top_log_probs": []}
_ERROR_FORM = re.compile(
    r"\b(invalid|overloaded|timeout|unavailable|internal): ([A-Za-z_][\w.\[\]-]*): (.+)", re.DOTALL
)
_UNKNOWN_INPUT = re.compile(r"unexpected inference input '(\w+)'")
_UNKNOWN_MODEL = re.compile(r"[Uu]nknown model: '(.+?)'")


class WireError(Exception):
    """A request that did not succeed: `code` says who can mend it, `field` which tensor it is about."""

    def __init__(self, code: ErrorCode, field: str, message: str) -> None:
        super().__init__(f"{code}: {field}: {message}")
        self.code = code
        self.field = field
        self.message = message

    @classmethod
    def parse(cls, text: str) -> WireError:
        """Read the server's message; the form `CODE: FIELD: message` may stand behind its own words."""
        if form := _ERROR_FORM.search(text):
            code, name, message = form.groups()
            return cls(cast(ErrorCode, code), name, message.strip())
        if unexpected := _UNKNOWN_INPUT.search(text):
            return cls("invalid", unexpected[1], "this model was installed without it; export it again")
        if unknown := _UNKNOWN_MODEL.search(text):
            return cls("not_found", "model", f"the server has no model {unknown[1]!r}")
        return cls("internal", "server", text.strip())


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateRequest:
    """One text to generate; a field left None is not sent, so that the server's default holds.

    Give exactly one of `text_input` (the prompt as it is), `messages` (the chat template is applied)
    and `input_ids` (goes to `NAME_engine` directly). Ranges: `model_repository/README.md`.
    `tools` may be called by the answer to `messages`.
    `evidence` are blocks of text that go to `{evidence}` in the prompt, in `num_permutations` orders.
    """

    text_input: str | None = None
    messages: Sequence[Mapping[str, Any]] | None = None
    tools: Sequence[Mapping[str, Any]] | None = None
    input_ids: Sequence[int] | None = None
    evidence: Sequence[str] | None = None
    num_permutations: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop_words: Sequence[str] | None = None
    bad_words: Sequence[str] | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    seed: int | None = None
    logit_bias: Mapping[int, float] | None = None
    guided_decoding_guide_type: str | None = None
    guided_decoding_guide: str | None = None
    stream: bool | None = None
    exclude_input_in_output: bool | None = None
    return_log_probs: bool | None = None
    num_log_probs: int | None = None
    session_id: str | None = None
    priority: int | None = None
    timeout: int | None = None
    user: str | None = None

    def __post_init__(self) -> None:
        given = [name for name in ("text_input", "messages", "input_ids") if getattr(self, name) is not None]
        if len(given) != 1:
            names = " and ".join(given) or "none"
            raise WireError(
                "invalid", "text_input", f"give one of text_input, messages, input_ids; got {names}"
            )
        for name in ("evidence", "num_permutations"):
            if self.input_ids is not None and getattr(self, name) is not None:
                raise WireError(
                    "invalid", name, "token ids have no place for evidence; send the prompt as text"
                )

    def infer_inputs(self) -> list[Any]:
        """Return the `tritonclient.grpc.InferInput` list of every field that is set."""
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        return [infer_input(name, value) for name, value in values.items() if value is not None]


@dataclass(frozen=True, slots=True)
class GenerateResponse:
    """One response of a generation; the meaning of each field is the contract's.

    `uncertainty` and `cot_budget` are None for a model that does not tell them.
    """

    text_output: str = ""
    output_ids: Sequence[int] = ()
    finish_reason: str = ""
    stop_reason: str = ""
    num_input_tokens: int = 0
    num_output_tokens: int = 0
    num_cached_tokens: int = 0
    cum_log_probs: float = 0.0
    output_log_probs: Sequence[float] = ()
    top_log_probs: Sequence[Mapping[str, float]] = ()
    timings: Mapping[str, int] = field(default_factory=dict)
    uncertainty: Mapping[str, Any] | None = None
    cot_budget: int | None = None

    @classmethod
    def from_infer_result(cls, result: Any) -> GenerateResponse:
        """Read a `tritonclient.grpc.InferResult`; raises WireError for a tensor outside the contract."""
        message = result.get_response()
        pairs = zip(message.outputs, message.raw_output_contents, strict=True)
        return cls(**{output.name: _decoded(output.name, content) for output, content in pairs})


def infer_input(name: str, value: Any) -> Any:
    """Return `value` as the input tensor `name`, (1, size); WireError `invalid` if it cannot be sent."""
    import numpy as np
    from tritonclient.grpc import InferInput

    tensor = INPUTS.get(name) or ENGINE_INPUTS[name]
    if name in _JSON_TENSORS:
        value = json.dumps(value, ensure_ascii=False)
    values = [value] if tensor.size == 1 else list(value)
    try:
        with np.errstate(over="raise"):
            plain = [_plain(item, tensor.datatype) for item in values]
            array = np.array([plain], dtype=_NUMPY_TYPES[tensor.datatype])
    except (TypeError, ValueError, OverflowError, FloatingPointError) as error:
        raise WireError("invalid", name, f"{value!r:.80} does not fit {tensor.datatype}: {error}") from error
    tensor_input = InferInput(name, list(array.shape), tensor.datatype)
    return tensor_input.set_data_from_numpy(array)


def _plain(item: Any, datatype: str) -> Any:
    kind, kind_name = _PYTHON_TYPES[datatype]
    if not isinstance(item, kind) or (isinstance(item, bool) and kind is not bool):
        raise TypeError(f"expected {kind_name}")
    return item.encode() if isinstance(item, str) else item


def _decoded(name: str, content: bytes) -> Any:
    tensor = OUTPUTS.get(name) or EXTRA_OUTPUTS.get(name)
    if tensor is None:
        known = ", ".join((*OUTPUTS, *EXTRA_OUTPUTS))
        raise WireError("internal", name, f"an output outside the contract; known: {known}")
    values = _DECODERS[tensor.datatype](content)
    if tensor.size == -1:
        return values
    if name in _JSON_TENSORS:
        return json.loads(values[0]) if values[0] else _EMPTY.get(name)
    return values[0]


def _strings(content: bytes) -> list[str]:
    strings, offset = [], 0
    while offset < len(content):
        (length,) = struct.unpack_from("<I", content, offset)
        offset += 4 + length
        strings.append(content[offset - length : offset].decode())
    return strings


_PYTHON_TYPES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "BYTES": (str, "a string"),
    "INT32": (int, "an integer"),
    "UINT64": (int, "an integer"),
    "FP32": ((int, float), "a number"),
    "BOOL": (bool, "a boolean"),
}
_NUMPY_TYPES = {"BYTES": "object", "INT32": "int32", "UINT64": "uint64", "FP32": "float32", "BOOL": "bool"}
_DECODERS: dict[str, Callable[[bytes], list[Any]]] = {
    "BYTES": _strings,
    "INT32": lambda content: memoryview(content).cast("i").tolist(),
    "FP32": lambda content: memoryview(content).cast("f").tolist(),
}

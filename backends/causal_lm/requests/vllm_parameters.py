"""`sampling_parameters`: a request's values as vLLM's own Triton backend takes them, in one JSON object."""

import json
import math
from collections.abc import Callable, Mapping
from contextlib import suppress

from backends.causal_lm.requests.contract import RequestError

FIELD = "sampling_parameters"
Values = dict[str, object]


def expand(text: str) -> Values:
    """The contract's values for vLLM's names; numbers may be strings. Raises RequestError."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(FIELD, f"is not JSON ({error}); an object is needed") from None
    if not isinstance(data, dict):
        raise RequestError(FIELD, "is not a JSON object")
    values: Values = {}
    for name, value in data.items():
        if name not in _READERS:
            raise RequestError(FIELD, f"has {name!r:.80}, known are {', '.join(_READERS)}")
        if value is not None:
            values |= _READERS[name](name, value)
    return values


def _float(name: str, value: object) -> Values:
    return {name: _number(name, value)}


def _integer(name: str, value: object) -> Values:
    number = _number(name, value)
    return {name: int(number) if number.is_integer() else number}


def _seed(name: str, value: object) -> Values:
    """Not by way of a float, which has not the digits."""
    digits = str(value)
    return {name: int(digits) if digits.isascii() and digits.isdigit() and len(digits) < 21 else value}


def _top_k(name: str, value: object) -> Values:
    number = _number(name, value)
    return {name: 0} if number == -1 else _integer(name, value)


def _words(contract_name: str) -> Callable[[str, object], Values]:
    def read(name: str, value: object) -> Values:
        return {contract_name: [value] if isinstance(value, str) else value}

    return read


def _log_probs(name: str, value: object) -> Values:
    return {"return_log_probs": True, **_integer("num_log_probs", value)}


def _logit_bias(name: str, value: object) -> Values:
    return {name: json.dumps(value)}


def _guided(name: str, value: object) -> Values:
    """vLLM's guided decoding: an object, or its JSON, with one of json, regex, choice, grammar."""
    data = _parsed(value) if isinstance(value, str) else value
    kinds = [kind for kind in _GUIDES if isinstance(data, dict) and data.get(kind) is not None]
    if not isinstance(data, dict) or len(data) != 1 or len(kinds) != 1:
        raise RequestError(FIELD, f"{name} needs one of {', '.join(_GUIDES)}")
    (kind,) = kinds
    guide = data[kind]
    text = guide if isinstance(guide, str) else json.dumps(guide)
    return {"guided_decoding_guide_type": _GUIDES[kind], "guided_decoding_guide": text}


def _parsed(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _number(name: str, value: object) -> float:
    number = math.nan
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        with suppress(ValueError, OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise RequestError(FIELD, f"{name} is {value!r:.80}, a number is needed")
    return number


_GUIDES = {"json": "json_schema", "regex": "regex", "choice": "choice", "grammar": "grammar"}
_READERS: Mapping[str, Callable[[str, object], Values]] = {
    **dict.fromkeys(
        ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"),
        _float,
    ),
    **dict.fromkeys(("max_tokens", "min_tokens"), _integer),
    "top_k": _top_k,
    "seed": _seed,
    "stop": _words("stop_words"),
    "bad_words": _words("bad_words"),
    "logprobs": _log_probs,
    "logit_bias": _logit_bias,
    "guided_decoding": _guided,
    "structured_outputs": _guided,
}

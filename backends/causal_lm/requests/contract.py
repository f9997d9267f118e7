"""Typed, ranged values out of a request: the tensor contract's words for what is wrong."""

import json
import secrets
from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.manifest import Manifest

MAX_WORDS = {"stop_words": 16, "bad_words": 64}
MAX_WORD_LENGTH = 256


class RequestError(ValueError):
    """A request outside the contract; `str()` is the contract's form `invalid: FIELD: …`."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"invalid: {field}: {message}")
        self.field, self.message = field, message


class ContractReader:
    """Takes contract values out of a mapping and knows which names nobody asked for."""

    def __init__(self, values: Mapping[str, object]) -> None:
        self._values = values
        self._known: list[str] = []

    def refuse_unknown(self) -> None:
        for name in self._values:
            if name not in self._known:
                raise RequestError(
                    name, f"is not an input of the engine, allowed are {', '.join(self._known)}"
                )

    def integer(self, name: str, default: int | None, *, low: int, high: int | None = None) -> int:
        value = self._take(name)
        if value is None:
            return secrets.randbits(64) if default is None else default
        if isinstance(value, bool) or not isinstance(value, int | np.integer):
            raise RequestError(name, f"{value!r} was given, an integer is needed")
        if value < low or (high is not None and value > high):
            allowed = f"{low} or more" if high is None else f"{low} to {high}"
            raise RequestError(name, f"{value} was given, allowed is {allowed}")
        return int(value)

    def number(self, name: str, default: float, *, low: float, high: float, above_low: bool = False) -> float:
        value = self._take(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
            raise RequestError(name, f"{value!r} was given, a number is needed")
        if not low <= value <= high or (above_low and value == low):
            above = "above " if above_low else ""
            raise RequestError(name, f"{float(value):g} was given, allowed is {above}{low} to {high}")
        return float(value)

    def boolean(self, name: str, default: bool) -> bool:
        value = self._take(name)
        if value is None:
            return default
        if not isinstance(value, bool | np.bool_):
            raise RequestError(name, f"{value!r} was given, true or false is needed")
        return bool(value)

    def optional_text(self, name: str) -> str | None:
        value = self._take(name)
        return None if value is None else _text(name, value)

    def words(self, name: str) -> tuple[str, ...]:
        """`stop_words` or `bad_words`."""
        value = self._take(name)
        if value is None:
            return ()
        if isinstance(value, str | bytes) or not isinstance(value, Iterable):
            raise RequestError(name, f"{value!r} was given, a list of strings is needed")
        words = tuple(_text(name, word) for word in value)
        if len(words) > MAX_WORDS[name]:
            raise RequestError(name, f"{len(words)} were given, allowed are up to {MAX_WORDS[name]}")
        for word in words:
            if not 1 <= len(word) <= MAX_WORD_LENGTH:
                raise RequestError(
                    name, f"one has {len(word)} characters, allowed are 1 to {MAX_WORD_LENGTH}"
                )
        return words

    def alias(self, name: str, other: str) -> None:
        """Let `other` stand for `name`; both may be given if they agree."""
        value = self._take(other)
        if value is None:
            return
        if self._values.get(name, value) != value:
            raise RequestError(other, f"{value!r} was given, but {name} is {self._values[name]!r}")
        self._values = {**self._values, name: value}

    def logit_bias(self, vocab_size: int) -> dict[int, float]:
        text = self.optional_text("logit_bias")
        if not text:
            return {}
        try:
            data = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise RequestError(
                "logit_bias", f"is not JSON ({error}); allowed is an object, token id → bias"
            ) from None
        if not isinstance(data, dict):
            raise RequestError("logit_bias", "is not a JSON object, token id → bias")
        return dict(_bias(key, value, vocab_size) for key, value in data.items())

    def prompts(self, manifest: Manifest) -> tuple[NDArray[np.int64], ...]:
        """`input_ids`, cut into prompts of `prompt_lengths` if these are given."""
        ids = self._token_ids(manifest)
        lengths = self._prompt_lengths(len(ids))
        if max(lengths) >= manifest.max_length:
            raise RequestError(
                "input_ids",
                f"the prompt has {max(lengths)} tokens, allowed are up to {manifest.max_length - 1} "
                f"(the model's context holds {manifest.max_length}, the answer included)",
            )
        return tuple(np.split(ids, np.cumsum(lengths)[:-1]))

    def _prompt_lengths(self, num_ids: int) -> list[int]:
        value = self._take("prompt_lengths")
        lengths = np.asarray([num_ids] if value is None else value)
        if lengths.ndim != 1 or lengths.size == 0 or lengths.dtype.kind not in "iu" or lengths.min() < 1:
            raise RequestError("prompt_lengths", "a list of lengths of at least one token each is needed")
        if lengths.sum() != num_ids:
            raise RequestError(
                "prompt_lengths", f"their sum is {lengths.sum()}, allowed is {num_ids}, all of input_ids"
            )
        return [int(length) for length in lengths]

    def _token_ids(self, manifest: Manifest) -> NDArray[np.int64]:
        value = self._take("input_ids")
        ids = np.asarray([] if value is None else value)
        if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
            raise RequestError("input_ids", "a list of at least one token id is needed")
        if ids.min() < 0 or ids.max() >= manifest.vocab_size:
            worst = ids.min() if ids.min() < 0 else ids.max()
            raise RequestError(
                "input_ids", f"token id {worst} was given, allowed is 0 to {manifest.vocab_size - 1}"
            )
        return ids.astype(np.int64)

    def _take(self, name: str) -> object:
        self._known.append(name)
        return self._values.get(name)


def _bias(key: str, value: object, vocab_size: int) -> tuple[int, float]:
    if not key.isascii() or not key.isdigit() or len(key) > 9 or int(key) >= vocab_size:
        raise RequestError("logit_bias", f"token id {key!r} was given, allowed is 0 to {vocab_size - 1}")
    if isinstance(value, bool) or not isinstance(value, int | float) or not -100 <= value <= 100:
        raise RequestError("logit_bias", f"bias {value!r} was given for token {key}, allowed is -100 to 100")
    return int(key), float(value)


def _text(name: str, value: object) -> str:
    if isinstance(value, str):
        return value
    if not isinstance(value, bytes):
        raise RequestError(name, f"{value!r} was given, a string is needed")
    try:
        return value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(name, f"is not UTF-8 ({error.reason} at byte {error.start})") from None

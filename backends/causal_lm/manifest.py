"""manifest.json: what the engine must know about a graph and refuses to guess."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from backends.causal_lm.figures import KNOWN

FORMAT = "trident-engine/2"
KINDS = ("kv", "recurrent")
DTYPES = ("float32", "float16")

_KEYS = (
    "format", "model", "engine", "precision", "graph", "source", "stamps", "vocab_size",
    "max_length", "states", "special_tokens", "sampling", "extra_outputs",
)  # fmt: skip


class LoadError(Exception):
    """A model directory that cannot be served; the message says what is wrong and what to do."""


@dataclass(frozen=True, slots=True)
class State:
    """One state tensor: `shape` is per sequence; axis 1 of a `kv` state is the position."""

    kind: Literal["kv", "recurrent"]
    past: str
    present: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class SpecialTokens:
    """Token ids with a meaning; any of `eos` ends a sequence."""

    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


@dataclass(frozen=True, slots=True)
class SamplingDefaults:
    """Sampling of a request that names none; ranges as in the tensor contract.

    `max_tokens` None is the rest of the context.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    max_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The validated content of manifest.json."""

    model: str
    engine: str
    precision: str
    graph: str
    source: Mapping[str, object]
    stamps: Mapping[str, object]
    vocab_size: int
    max_length: int
    states: tuple[State, ...]
    special_tokens: SpecialTokens
    sampling: SamplingDefaults
    extra_outputs: tuple[str, ...]


def read_manifest(path: Path) -> Manifest:
    """Read and validate manifest.json; raises LoadError naming the key and what is allowed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise LoadError(f"{path} is missing; export the model again") from None
    except ValueError as error:
        raise LoadError(f"{path} is not JSON ({error}); export the model again") from error
    return _manifest(_keys(data, _KEYS, "manifest.json"))


def check_stamp(manifest: Manifest, library: str, running: str) -> None:
    """Refuse a graph exported for another major.minor of `library` than the running one."""
    stamp = manifest.stamps.get(library)
    if not isinstance(stamp, str):
        raise LoadError(
            f"manifest.json: stamps has no {library!r}; "
            f"export {manifest.model!r} again with {library} {running}"
        )
    if stamp.split(".")[:2] != running.split(".")[:2]:
        raise LoadError(
            f"{manifest.model!r} was exported for {library} {stamp}, this server runs {running}: "
            f"export it again with {library} {'.'.join(running.split('.')[:2])}"
        )


def _manifest(data: dict[str, Any]) -> Manifest:
    if data["format"] != FORMAT:
        raise LoadError(
            f"manifest.json: format is {data['format']!r}, this engine reads {FORMAT!r}; export again"
        )
    vocab_size, max_length = (_integer(data[key], key, 1) for key in ("vocab_size", "max_length"))
    return Manifest(
        model=_string(data["model"], "model"),
        engine=_string(data["engine"], "engine"),
        precision=_string(data["precision"], "precision"),
        graph=_string(data["graph"], "graph"),
        source=_keys(data["source"], None, "source"),
        stamps=_keys(data["stamps"], None, "stamps"),
        vocab_size=vocab_size,
        max_length=max_length,
        states=tuple(_state(entry, max_length) for entry in _list(data["states"], "states")),
        special_tokens=_special_tokens(data["special_tokens"], vocab_size),
        sampling=_sampling(data["sampling"]),
        extra_outputs=tuple(_figure(name) for name in _list(data["extra_outputs"], "extra_outputs")),
    )


def _figure(name: object) -> str:
    if name not in KNOWN:
        raise LoadError(
            f"manifest.json: extra_outputs has {name!r}, no tensor for it; known are {', '.join(KNOWN)}"
        )
    return name


def _state(data: object, max_length: int) -> State:
    entry = _keys(data, ("kind", "past", "present", "shape", "dtype"), "states")
    shape = tuple(_integer(size, "states.shape", 1) for size in _list(entry["shape"], "states.shape"))
    if entry["kind"] not in KINDS:
        raise LoadError(f"manifest.json: states.kind is {entry['kind']!r}, allowed are {', '.join(KINDS)}")
    if entry["dtype"] not in DTYPES:
        raise LoadError(f"manifest.json: states.dtype is {entry['dtype']!r}, allowed are {', '.join(DTYPES)}")
    if entry["kind"] == "kv" and (len(shape) < 2 or shape[1] != max_length):
        raise LoadError(
            f"manifest.json: kv state {entry['past']!r} has shape {list(shape)}; "
            f"axis 1 must be max_length {max_length}"
        )
    past, present = (_string(entry[key], f"states.{key}") for key in ("past", "present"))
    kind = cast(Literal["kv", "recurrent"], entry["kind"])
    return State(kind=kind, past=past, present=present, shape=shape, dtype=cast(str, entry["dtype"]))


def _special_tokens(data: object, vocab_size: int) -> SpecialTokens:
    entry = _keys(data, ("bos", "eos", "pad"), "special_tokens")

    def token(value: object, key: str) -> int:
        return _integer(value, f"special_tokens.{key}", 0, vocab_size - 1)

    return SpecialTokens(
        bos=None if entry["bos"] is None else token(entry["bos"], "bos"),
        eos=tuple(token(value, "eos") for value in _list(entry["eos"], "special_tokens.eos")),
        pad=None if entry["pad"] is None else token(entry["pad"], "pad"),
    )


def _sampling(data: object) -> SamplingDefaults:
    keys = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")
    entry = _keys(data, keys, "sampling", optional=("max_tokens",))
    for key in keys:
        if isinstance(entry[key], bool) or not isinstance(entry[key], int | float):
            raise LoadError(f"manifest.json: sampling.{key} is {entry[key]!r}, a number is needed")
    return SamplingDefaults(
        temperature=float(entry["temperature"]),
        top_k=_integer(entry["top_k"], "sampling.top_k", 0),
        top_p=float(entry["top_p"]),
        min_p=float(entry["min_p"]),
        repetition_penalty=float(entry["repetition_penalty"]),
        max_tokens=_optional_integer(entry.get("max_tokens"), "sampling.max_tokens", 1),
    )


def _keys(
    data: object, keys: tuple[str, ...] | None, where: str, optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise LoadError(f"manifest.json: {where} is {data!r}, an object is needed")
    if keys is None:
        return data
    missing, unknown = sorted(set(keys) - set(data)), sorted(set(data) - {*keys, *optional})
    if missing or unknown:
        raise LoadError(f"{where}: missing keys {missing}, unknown keys {unknown}; export the model again")
    return data


def _list(value: object, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise LoadError(f"manifest.json: {where} is {value!r}, a list is needed")
    return value


def _string(value: object, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise LoadError(f"manifest.json: {where} is {value!r}, a non-empty string is needed")
    return value


def _integer(value: object, where: str, low: int, high: int | None = None) -> int:
    if (
        isinstance(value, bool)
        or not isinstance(value, int)
        or value < low
        or (high is not None and value > high)
    ):
        allowed = f"{low} or more" if high is None else f"{low} to {high}"
        raise LoadError(f"manifest.json: {where} is {value!r}, allowed is an integer, {allowed}")
    return value


def _optional_integer(value: object, where: str, low: int) -> int | None:
    return None if value is None else _integer(value, where, low)

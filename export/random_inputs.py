"""Inputs to try a graph with: drawn at random until it takes them, or a user's own."""

from collections.abc import Iterator, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

Arrays = dict[str, NDArray[Any]]

# Sizes for an axis that the graph leaves open, and bounds for integers, which are often ids or flags.
SIZES = (2, 16, 256, 512, 1)
BOUNDS = (100, 2)
MAX_ATTEMPTS = 250
DTYPES = {
    "tensor(bool)": np.bool_,
    "tensor(uint8)": np.uint8,
    "tensor(uint16)": np.uint16,
    "tensor(uint32)": np.uint32,
    "tensor(uint64)": np.uint64,
    "tensor(int8)": np.int8,
    "tensor(int16)": np.int16,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float16)": np.float16,
    "tensor(float)": np.float32,
    "tensor(double)": np.float64,
    "tensor(string)": np.object_,
}


class NoInputsError(Exception):
    """The graph takes none of the inputs; the message is a sentence."""


def sizes_of(value: Any) -> tuple[int, ...]:
    """The shape that a session tells of one of its tensors, -1 for any size."""
    return tuple(size if isinstance(size, int) and size >= 0 else -1 for size in value.shape)


def draw_inputs(session: ort.InferenceSession, seed: int = 0) -> Arrays:
    """Random inputs that the graph computes with.

    Axes that bear one name get one size; open axes, named or not, are tried in several. Raises NoInputsError.
    """
    rng = np.random.default_rng(seed)
    inputs = session.get_inputs()
    _require_known(inputs)
    names, last = [value.name for value in session.get_outputs()], ""
    for sizes, bound in islice(_attempts(inputs), MAX_ATTEMPTS):
        feeds = {
            value.name: _draw(rng, value.type, [sizes.get(axis, axis) for axis in _axes(value)], bound)
            for value in inputs
        }
        try:
            session.run(names, feeds)
        except Exception as error:  # a graph may refuse a size in whatever way
            last = " ".join(str(error).split())
        else:
            return feeds
    raise NoInputsError(
        f"it takes no random input ({last[:300]}): give it one with --example FILE.npz, an array per input"
    )


def read_example(path: Path, inputs: Sequence[Any]) -> Arrays:
    """The arrays in `path`, one per input and of its type; raises NoInputsError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError) as error:
        raise NoInputsError(f"{path} is no .npz file of arrays: {error}") from error
    _require_known(inputs)
    expected = {value.name: np.dtype(DTYPES[value.type]) for value in inputs}
    given = {
        name: array.dtype if array.dtype.kind != "U" else np.dtype(object) for name, array in arrays.items()
    }
    if given != expected:
        said, needed = (_listed(types) for types in (given, expected))
        raise NoInputsError(f"{path} holds {said}; the graph takes {needed}")
    return {name: array.astype(expected[name]) for name, array in arrays.items()}


def _listed(types: dict[str, np.dtype[Any]]) -> str:
    return ", ".join(f"{name} ({dtype})" for name, dtype in types.items()) or "nothing"


def _require_known(inputs: Sequence[Any]) -> None:
    for value in inputs:
        if value.type not in DTYPES:
            raise NoInputsError(f"{value.name} is a {value.type}; Triton can pass {', '.join(DTYPES)}")


def _axes(value: Any) -> list[int | str]:
    """Each axis by its size or, if it is open, by its name; one without gets a name of its own."""
    return [
        size if isinstance(size, int) and size >= 0 else size or f"{value.name}.{axis}"
        for axis, size in enumerate(value.shape)
    ]


def _attempts(inputs: Sequence[Any]) -> Iterator[tuple[dict[int | str, int], int]]:
    names = list(dict.fromkeys(axis for value in inputs for axis in _axes(value) if isinstance(axis, str)))
    for bound in BOUNDS:
        for sizes in product(SIZES, repeat=len(names)):
            yield dict(zip(names, sizes, strict=True)), bound


def _draw(rng: np.random.Generator, kind: str, shape: Sequence[Any], bound: int) -> NDArray[Any]:
    dtype = np.dtype(DTYPES[kind])
    if dtype.kind == "f":
        return rng.standard_normal(shape).astype(dtype)
    if dtype.kind == "O":
        return np.array([f"text {number}" for number in rng.integers(0, bound, shape).flat], dtype).reshape(
            shape
        )
    return np.asarray(rng.integers(0, bound, shape)).astype(dtype)

"""One stateless graph on ONNX Runtime, with numpy arrays in Triton's form in and out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from backends.onnxruntime.errors import GraphError, LoadError
from backends.onnxruntime.options import Config, run_options, session_options
from backends.onnxruntime.signature import Signature, TensorSpec, spec_of

Array = npt.NDArray[Any]


class Graph:
    """A session over the graph at `path`; a string is bytes outside, and UTF-8.

    ONNX Runtime itself refuses weights outside the graph's directory, whether by `..`, an absolute path or a
    symbolic link, and sizes that their files don't have; tests hold it to that. Raises LoadError.
    """

    def __init__(self, path: Path, config: Config) -> None:
        options, self._run_options = session_options(config), run_options(config)
        if not path.is_file():
            raise LoadError(f"{path.name} is missing from {path.parent}; see default_model_filename")
        try:
            self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise LoadError(f"{path.name} can't be loaded: {error}") from error
        self.signature = Signature(
            inputs=tuple(map(spec_of, self._session.get_inputs())),
            outputs=tuple(map(spec_of, self._session.get_outputs())),
        )
        self._inputs = {spec.name: spec for spec in self.signature.inputs}

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """The `wanted` outputs of one run; GraphError says whose fault it is if there are none."""
        values = {name: _to_graph(self._inputs[name], array) for name, array in feeds.items()}
        try:
            outputs = self._session.run(list(wanted), values, self._run_options)
        except Exception as error:
            raise _fault(error) from error
        return {name: _from_graph(array) for name, array in zip(wanted, outputs, strict=True)}


def _to_graph(spec: TensorSpec, array: Array) -> Array:
    if spec.type == "TYPE_STRING":
        array = _decoded(spec.name, array)
    is_scalar = not spec.shape and array.size == 1
    return array.reshape(()) if is_scalar else array


def _decoded(name: str, array: Array) -> Array:
    try:
        texts = [item.decode() for item in array.flat]
    except UnicodeDecodeError as error:
        raise GraphError("invalid", name, f"not UTF-8: {error}") from None
    return np.array(texts, np.object_).reshape(array.shape)


def _from_graph(array: Array) -> Array:
    """A tensor as Triton takes it: of strings, bytes; of a scalar, one axis."""
    array = np.atleast_1d(array)
    if array.dtype != np.object_:
        return array
    return np.array([text.encode() for text in array.flat], np.object_).reshape(array.shape)


def _fault(error: Exception) -> GraphError:
    """The request's fault if ONNX Runtime calls an argument invalid, else ours."""
    is_theirs = type(error).__name__ == "InvalidArgument"
    return GraphError("invalid" if is_theirs else "internal", "graph", " ".join(str(error).split()))

"""A foreign decoder as its author left it, on ONNX Runtime without optimisations."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from export.errors import ExportError
from export.graph_session import Logits, Tokens

NAME = "ONNX Runtime without optimisations"

Arrays = dict[str, NDArray[Any]]

# ONNX Runtime's names of types.
TYPES = {
    "tensor(bool)": np.bool_,
    "tensor(int32)": np.int32,
    "tensor(int64)": np.int64,
    "tensor(float)": np.float32,
    "tensor(float16)": np.float16,
}


class Past(BaseModel):
    """A cache by its names, and its shape but for the rows and the tokens."""

    model_config = ConfigDict(frozen=True)

    past: str
    present: str
    num_heads: int
    head_dim: int


class Signature(BaseModel):
    """What a decoder's graph calls its tensors; the mask and the positions are None where it takes none."""

    model_config = ConfigDict(frozen=True)

    ids: str
    mask: str | None
    positions: str | None
    logits: str
    tells_last: bool
    caches: tuple[Past, ...]


class PlainDecoder:
    """Runs one sequence at a time, fed as the libraries feed it that such graphs are made for."""

    def __init__(self, path: Path, signature: Signature, max_length: int) -> None:
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.log_severity_level = 4
        self._session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._signature = signature
        self._inputs = {value.name: value for value in self._session.get_inputs()}
        self.max_length = max_length

    def logits(self, tokens: list[int] | Tokens) -> Logits:
        """Logits (T, V) after each of `tokens` (T,), with nothing before them.

        All at once, and one by one only where the graph has logits for the last alone. Raises ExportError for
        logits that are no finite numbers.
        """
        ids = np.array(tokens, np.int64)
        chunks = np.split(ids, len(ids)) if self._signature.tells_last else [ids]
        logits = np.concatenate([*self._runs(chunks)]).astype(np.float32)
        require_finite(logits)
        return logits

    def _runs(self, chunks: list[Tokens]) -> Iterator[NDArray[Any]]:
        past, start = self._nothing(), 0
        for chunk in chunks:
            feeds = self._tokens(chunk, start) | self._flags(start) | past
            names = [self._signature.logits, *(cache.present for cache in self._signature.caches)]
            (logits, *presents) = self._session.run(names, feeds)
            past = dict(zip(past, presents, strict=True))
            start += len(chunk)
            yield logits[0]

    def _nothing(self) -> Arrays:
        """A past of no tokens."""
        return {
            cache.past: np.zeros(
                (1, cache.num_heads, 0, cache.head_dim), TYPES[self._inputs[cache.past].type]
            )
            for cache in self._signature.caches
        }

    def _tokens(self, chunk: Tokens, start: int) -> Arrays:
        stop, known = start + len(chunk), self._signature
        fed = {known.ids: chunk, known.mask: np.ones(stop), known.positions: np.arange(start, stop)}
        return {
            name: values[None].astype(TYPES[self._inputs[name].type])
            for name, values in fed.items()
            if name is not None
        }

    def _flags(self, start: int) -> Arrays:
        """Whether there is a past; that logits are wanted of all tokens."""
        values = {"use_cache_branch": start > 0, "num_logits_to_keep": 0}
        return {
            name: np.full([1] * len(self._inputs[name].shape), value, TYPES[self._inputs[name].type])
            for name, value in values.items()
            if name in self._inputs
        }


def require_finite(logits: Logits) -> None:
    """ExportError for what can't be compared."""
    if not np.isfinite(logits).all():
        raise ExportError("its logits are no finite numbers")

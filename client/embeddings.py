"""Texts to vectors over Triton: what is sent, and what comes back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from client.wire import WireError

TEXT_SUFFIX, TOKEN_SUFFIX = "_embedding", "_embedder"
MAX_BATCH = 32  # what one request to these models may hold
_BUCKET = 16  # requests of similar length get equal shapes, which Triton can put together

Texts = Sequence[str] | Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class Embeddings:
    """Vectors of length 1 as little-endian float32, one per text, and how many tokens were read."""

    vectors: tuple[bytes, ...]
    num_tokens: int


def target_of(model: str, texts: Texts) -> str:
    """The model on the server that reads such texts: strings go by its tokenizer, token ids do not."""
    return model + (TEXT_SUFFIX if isinstance(texts[0], str) else TOKEN_SUFFIX)


def infer_inputs(texts: Texts) -> list[Any]:
    """The `tritonclient.grpc.InferInput` list of up to MAX_BATCH texts, all strings or all token ids."""
    import numpy as np
    from tritonclient.grpc import InferInput

    if isinstance(texts[0], str):
        arrays = {"text_input": np.array([[str(text).encode()] for text in texts], np.object_)}
    else:
        T = -(-max(map(len, texts)) // _BUCKET) * _BUCKET
        arrays = {name: np.zeros((len(texts), T), np.int64) for name in ("input_ids", "attention_mask")}
        for row, ids in enumerate(texts):
            arrays["input_ids"][row, : len(ids)] = ids
            arrays["attention_mask"][row, : len(ids)] = 1
    made = []
    for name, array in arrays.items():
        datatype = "BYTES" if array.dtype == np.object_ else "INT64"
        made.append(InferInput(name, list(array.shape), datatype).set_data_from_numpy(array))
    return made


def embeddings_from(result: Any, texts: Texts) -> Embeddings:
    """Read a `tritonclient.grpc.InferResult`; raises WireError for one without vectors."""
    vectors, counted = result.as_numpy("embedding"), result.as_numpy("num_tokens")
    if vectors is None or len(vectors) != len(texts):
        raise WireError("internal", "embedding", f"no vector for each of {len(texts)} texts came back")
    num_tokens = sum(map(len, texts)) if counted is None else int(counted.sum())
    return Embeddings(tuple(row.astype("<f4").tobytes() for row in vectors), num_tokens)

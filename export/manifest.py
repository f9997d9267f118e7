"""`manifest.json`: what the engine needs to run a graph (model_repository/README.md)."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from export.errors import ExportError

FORMAT = "trident-engine/2"

Engine = Literal["onnxruntime", "tensorrt", "tensorrt-rtx"]
Precision = Literal["fp32", "fp16", "int8", "int4"]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SourceStamp(_Part):
    """Where the weights came from; `sha256` is over the file, or over a directory's files in order."""

    file: str
    format: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class StateTensor(_Part):
    """One state tensor of the graph; `shape` is per sequence, axis 1 of a `kv` state is the position."""

    kind: Literal["kv", "recurrent"]
    past: str
    present: str
    shape: tuple[int, ...] = Field(min_length=1)
    dtype: Literal["float32", "float16"]


class SpecialTokens(_Part):
    """Token ids; any of `eos` ends a text."""

    bos: int | None
    eos: tuple[int, ...] = Field(min_length=1)
    pad: int | None


class Sampling(_Part):
    """What a request gets that does not say otherwise; temperature 0 is greedy.

    `max_tokens` None lets an answer fill the rest of the context.
    """

    temperature: float = Field(default=0.0, ge=0, le=2)
    top_k: int = Field(default=0, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    min_p: float = Field(default=0.0, ge=0, le=1)
    repetition_penalty: float = Field(default=1.0, gt=0, le=2)
    max_tokens: int | None = Field(default=None, ge=1)


class Manifest(_Part):
    """The whole file; an unknown or missing key is an error."""

    format: Literal["trident-engine/2"]
    model: str
    engine: Engine
    precision: Precision
    graph: Literal["model.onnx", "model.plan"]
    source: SourceStamp
    stamps: dict[str, str | int]
    vocab_size: int = Field(ge=1)
    max_length: int = Field(ge=1)
    states: tuple[StateTensor, ...]
    special_tokens: SpecialTokens
    sampling: Sampling
    extra_outputs: tuple[str, ...]


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`; ExportError names the file and the first thing that is wrong with it."""
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ExportError(f"{path} is not a {FORMAT} manifest: {_first_problem(error)}") from error


def _first_problem(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the file'}: {first['msg']}"


def write_manifest(manifest: Manifest, path: Path) -> None:
    """Write `manifest` as JSON, as `read_manifest` and the engine read it."""
    path.write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")

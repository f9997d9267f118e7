"""The files of a checkpoint directory, by name: which of them hold the weights, and what belongs to them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from export.errors import ExportError

CONFIG = "config.json"
MAX_JSON_BYTES = 64 << 20
MAX_NAME = 200

SAFETENSORS, TORCH = ".safetensors", ".bin"
TORCH_SUFFIXES = (TORCH, ".pt", ".pth")
# In the order of preference; an index names the shards.
WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX = ".index.json"
GRAPH = "model.onnx"

# What else of a directory decides what the model says.
COMPANIONS = (
    CONFIG,
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "chat_template.jinja",
    "held_out.txt",
)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`; ExportError for anything else, and for more than 64 MB of it."""
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ExportError(f"{path} has {path.stat().st_size} bytes; at most {MAX_JSON_BYTES} are read")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds a JSON {type(value).__name__}; an object is needed")
    return value


def read_text(path: Path) -> str:
    """The text in `path`; ExportError if it is none."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ExportError(f"{path} is not UTF-8: {error}") from error


def find_weights(directory: Path) -> list[Path]:
    """The weight files of a Hugging Face directory, safetensors before PyTorch's.

    Raises ExportError if there are none, or if an index names what is not a file beside it.
    """
    for name in WEIGHTS:
        path = directory / name
        if path.is_file():
            return list(shards(path)) if name.endswith(INDEX) else [path]
    raise ExportError(
        f"{directory} holds none of {', '.join(WEIGHTS)}; there are {', '.join(contents(directory))}"
    )


def shards(index: Path) -> Mapping[Path, set[str]]:
    """The files that `index` names, with the tensors that it says each of them holds."""
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise ExportError(f"{index} has no weight_map from tensors to files")
    suffix = Path(index.name.removesuffix(INDEX)).suffix
    files: dict[Path, set[str]] = {}
    for tensor, file in names.items():
        is_name = isinstance(file, str) and Path(file).name == file and len(file) <= MAX_NAME
        if not is_name or not file.endswith(suffix):
            said = repr(file)[:80]
            raise ExportError(
                f"{index} says that {tensor} is in {said}; a shard is a {suffix} file beside it"
            )
        files.setdefault(index.with_name(file), set()).add(tensor)
    for file in files:
        if not file.is_file():
            raise ExportError(f"{file} is missing, though {index.name} names it: fetch it again")
    return files


def contents(directory: Path) -> list[str]:
    """The names in a directory for a sentence: at most ten."""
    names = sorted(path.name for path in directory.iterdir())
    return [*names[:10], *(["…"] if len(names) > 10 else [])] or ["no files"]


def checkpoint_files(directory: Path, weights: Path | None = None) -> list[Path]:
    """All files that a model in `directory` follows from; `weights` is the one to read, if it is given."""
    companions = [directory / name for name in COMPANIONS if (directory / name).is_file()]
    return [*companions, *([weights] if weights else find_weights(directory))]

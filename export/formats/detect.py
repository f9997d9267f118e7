"""Which format a file or directory has, seen from its content; reads no weights and needs no torch."""

import hashlib
import json
from pathlib import Path
from typing import Literal

from export.errors import ExportError
from export.manifest import SourceStamp

Format = Literal["gguf", "trident"]

GGUF_MAGIC = b"GGUF"
CHECKPOINT_TAG = "trident-checkpoint/"
CHUNK_BYTES = 1 << 20
SUPPORTED = "supported are a GGUF file and a Trident checkpoint directory"

# What a checkpoint directory is to export; anything else in it does not change the model.
CHECKPOINT_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "held_out.txt",
)


def detect_format(path: Path) -> Format:
    """The format of `path`; ExportError says what was found and what is supported."""
    return _directory_format(path) if path.is_dir() else _file_format(path)


def _directory_format(path: Path) -> Format:
    config = path / "config.json"
    try:
        tag = json.loads(config.read_bytes())["format"]
    except FileNotFoundError:
        raise ExportError(f"{path} holds no config.json; {SUPPORTED}") from None
    except (ValueError, KeyError, TypeError):
        raise ExportError(f"{config} carries no Trident format tag; {SUPPORTED}") from None
    if not str(tag).startswith(CHECKPOINT_TAG):
        raise ExportError(f"{config} is of format {tag!r}; {SUPPORTED}")
    return "trident"


def _file_format(path: Path) -> Format:
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise ExportError(f"{path} starts with {magic!r}, not {GGUF_MAGIC!r}; {SUPPORTED}")
    return "gguf"


def stamp_source(path: Path) -> SourceStamp:
    """Name, format and hash of what a model is read from."""
    kind = detect_format(path)
    files = (
        [path] if kind == "gguf" else [path / name for name in CHECKPOINT_FILES if (path / name).is_file()]
    )
    return SourceStamp(file=path.resolve().name, format=kind, sha256=hash_files(files))


def hash_files(files: list[Path]) -> str:
    """SHA-256 over names, sizes and bytes of `files` in order; over the bytes alone if it is one file."""
    digest = hashlib.sha256()
    for path in files:
        if len(files) > 1:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()

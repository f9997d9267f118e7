"""Which format a file or directory has, seen from its content; reads no weights and needs no torch."""

import hashlib
from pathlib import Path
from typing import Literal

from export.errors import ExportError
from export.formats.graph_files import find_graph
from export.formats.weight_files import CONFIG, WEIGHTS, checkpoint_files, contents, read_json
from export.manifest import SourceStamp

Format = Literal["ggml", "gguf", "trident", "huggingface", "safetensors", "pytorch", "onnx"]

GGUF_MAGIC = b"GGUF"
GGML_MAGICS = (b"lmgg", b"fmgg", b"tjgg", b"algg", b"nsgg")  # the last two are refused by name
ZIP_MAGIC, PICKLE_MAGIC = b"PK\x03\x04", b"\x80"
CHECKPOINT_TAG = "trident-checkpoint/"
ADAPTER_CONFIG = "adapter_config.json"
CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit
SUPPORTED = (
    "supported are a directory of Hugging Face or Trident, and a file of GGUF, GGML, safetensors, PyTorch "
    "or ONNX"
)

SUFFIXES: dict[str, Format] = {
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".pt": "pytorch",
    ".pth": "pytorch",
    ".onnx": "onnx",
}

# What a Trident checkpoint is to export; anything else in it does not change the model.
CHECKPOINT_FILES = (
    CONFIG,
    "model.safetensors",
    ADAPTER_CONFIG,  # it names the base and the base's hash
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "held_out.txt",
)


def detect_format(path: Path) -> Format:
    """The format of `path`; ExportError says what was found and what is supported."""
    return _directory_format(path) if path.is_dir() else _file_format(path)


def _directory_format(path: Path) -> Format:
    config = path / CONFIG
    if (path / ADAPTER_CONFIG).is_file():
        return "trident"
    if _is_about_a_graph(path):
        return "onnx"
    if not config.is_file():
        raise ExportError(f"{path} holds no {CONFIG}, but {', '.join(contents(path))}; {SUPPORTED}")
    values = read_json(config)
    tag, kind = values.get("format"), values.get("model_type")
    is_ours = isinstance(tag, str) and tag.startswith(CHECKPOINT_TAG)
    if is_ours and kind is not None:
        raise ExportError(f"{config} is of format {tag!r} and of model_type {kind!r}: which of them?")
    if not is_ours and kind is None:
        raise ExportError(
            f"{config} carries neither Trident's format tag nor a model_type, but "
            f"{', '.join(sorted(values)[:10]) or 'nothing'}; {SUPPORTED}"
        )
    return "trident" if is_ours else "huggingface"


def _is_about_a_graph(path: Path) -> bool:
    """Whether a directory holds a graph, and no weights that a decoder could be made of."""
    return not any((path / name).is_file() for name in WEIGHTS) and find_graph(path) is not None


def _file_format(path: Path) -> Format:
    found = _content_format(path)
    named = SUFFIXES.get(path.suffix.lower(), found)
    if named != found:
        raise ExportError(f"{path} is named as {named}, but its content is {found}: rename it if it is right")
    return found


def _content_format(path: Path) -> Format:
    with path.open("rb") as file:
        head = file.read(9)
    if head[:4] == GGUF_MAGIC:
        return "gguf"
    if head[:4] in GGML_MAGICS:
        return "ggml"
    if head[8:] == b"{" and int.from_bytes(head[:8], "little") <= MAX_HEADER_BYTES:
        return "safetensors"
    if head.startswith((ZIP_MAGIC, PICKLE_MAGIC)):
        return "pytorch"
    # Here, because onnx takes a while to load and few files get this far.
    from export.formats.onnx_graph import is_graph

    if is_graph(path):
        return "onnx"
    raise ExportError(f"{path} starts with {head!r}, as no known format does; {SUPPORTED}")


def source_files(path: Path, kind: Format) -> list[Path]:
    """All files that the model at `path` follows from."""
    match kind:
        case "gguf" | "ggml":
            return [path]
        case "trident":
            return [path / name for name in CHECKPOINT_FILES if (path / name).is_file()]
        case "huggingface":
            return checkpoint_files(path)
        case "safetensors" | "pytorch":
            return checkpoint_files(path.parent, path)
        case "onnx":
            from export.formats.onnx_graph import read_graph

            return read_graph(path).files


def stamp_source(path: Path, chat_template: Path | None = None) -> SourceStamp:
    """Name, format and hash of what a model is read from, with the template that replaces its own."""
    kind = detect_format(path)
    files = [*source_files(path, kind), *([chat_template] if chat_template else [])]
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

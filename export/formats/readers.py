"""The format readers by name."""

from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from export.errors import ExportError
from export.formats.detect import Format, detect_format
from export.formats.ggml import open_ggml
from export.formats.gguf import open_gguf
from export.formats.huggingface import open_huggingface
from export.formats.imported import Checkpoint, ImportedModel
from export.formats.trident import open_trident
from export.formats.weight_files import CONFIG


def open_weights_file(path: Path) -> Checkpoint:
    """A file of weights alone, with the configuration and tokenizer that lie beside it."""
    if not (path.parent / CONFIG).is_file():
        raise ExportError(
            f"{path} holds weights only, and {path.parent} no {CONFIG}: put the model's {CONFIG} and its "
            "tokenizer beside it, since neither heads nor words can be told from weights"
        )
    return open_huggingface(path.parent, path)


def refuse_graph(path: Path) -> NoReturn:
    """A graph is no checkpoint: it is served as it is."""
    raise ExportError(
        f"{path} is an ONNX graph, not weights to make one of: `trident import` serves it as it is"
    )


OPENERS: dict[Format, Callable[[Path], Checkpoint]] = {
    "ggml": open_ggml,
    "gguf": open_gguf,
    "huggingface": open_huggingface,
    "onnx": refuse_graph,
    "pytorch": open_weights_file,
    "safetensors": open_weights_file,
    "trident": open_trident,
}


def open_checkpoint(path: Path) -> Checkpoint:
    """What is at `path`, understood but for its weights; ExportError in one sentence."""
    return OPENERS[detect_format(path)](path)


def read_model(path: Path) -> ImportedModel:
    """The model at `path`, whatever supported format it has; ExportError in one sentence."""
    return open_checkpoint(path).read()

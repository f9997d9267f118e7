"""The format readers by name."""

from collections.abc import Callable
from pathlib import Path

from export.formats.detect import Format, detect_format
from export.formats.gguf import read_gguf
from export.formats.imported import ImportedModel
from export.formats.trident import read_trident

READERS: dict[Format, Callable[[Path], ImportedModel]] = {
    "gguf": read_gguf,
    "trident": read_trident,
}


def read_model(path: Path) -> ImportedModel:
    """The model at `path`, whatever supported format it has; ExportError in one sentence."""
    return READERS[detect_format(path)](path)

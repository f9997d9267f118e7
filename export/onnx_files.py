"""Reading and writing graphs: `NAME.onnx` with its weights in `NAME.onnx.data` beside it."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx_ir as ir

PAGE = 4096  # bytes; a large weight starts on one, to be mapped into memory as it lies
LARGE = 1 << 16


def load_graph(path: Path) -> ir.Model:
    """The graph in `path`; its weights stay on disk, mapped, until they are used.

    Raises ValueError when the file is no ONNX model.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such graph; export one with graph_from_decoder")
    try:
        return ir.load(path)
    except Exception as error:  # the parser's own error is not a class that can be imported
        raise ValueError(f"{path} was given, but it does not parse as an ONNX model: {error}") from error


def save_graph(model: ir.Model, path: Path) -> Path:
    """Write `model` to `path` and its weights to `path` + `.data`, whole or not at all; returns `path`."""
    weights = f"{path.name}.data"
    with staged(path) as directory:
        ir.save(model, directory / path.name, external_data=weights, alignment=PAGE, align_threshold=LARGE)
    return path


@contextmanager
def staged(path: Path) -> Iterator[Path]:
    """A directory beside `path` whose files replace those beside `path` when the block succeeds.

    `path` itself comes last: a reader that finds it finds what it refers to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as name:
        directory = Path(name)
        yield directory
        for file in sorted(directory.iterdir(), key=lambda file: file.name == path.name):
            with file.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(file, path.with_name(file.name))

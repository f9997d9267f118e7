"""`python -m export`: prove a model equal to PyTorch and install it for Triton."""

import errno
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from export.console import StageReporter, print_outcome
from export.errors import ExportError
from export.manifest import Engine, Precision
from export.pipeline import ExportOptions, export_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    model: Annotated[str, typer.Option(help="Name to serve under; smollm2 and atlas are known.")],
    source: Annotated[
        Path | None, typer.Option(help="A GGUF file or a Trident checkpoint directory.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="What will run the graph.")] = "onnxruntime",
    precision: Annotated[Precision, typer.Option(help="Of the weights.")] = "int8",
    max_length: Annotated[int | None, typer.Option(help="A shorter context, in tokens.")] = None,
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = Path("model_repository"),
    output: Annotated[
        Path | None,
        typer.Option(help="Where a TensorRT artifact goes (default: build/MODEL-ENGINE-PRECISION)."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Export anew, even if nothing has changed.")] = False,
) -> None:
    """Read a model, write its graph, compare it with PyTorch, and install what is equal."""
    options = ExportOptions(model, source, engine, precision, max_length, repository, output, force)
    with _one_sentence():
        with StageReporter() as reporter:
            outcome = export_model(options, reporter.enter)
        print_outcome(options, outcome)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Turn what a user can mend into one sentence and an exit code: 1 refused, 130 interrupted."""
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        raise _refuse("interrupted; nothing was installed", 130) from None
    except ExportError as error:
        raise _refuse(str(error), 1) from error
    except OSError as error:
        raise _refuse(_explain(error), 1) from error


def _refuse(sentence: str, code: int) -> typer.Exit:
    print(f"trident export: {sentence}", file=sys.stderr)
    return typer.Exit(code)


def _explain(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return f"the disk is full ({error.filename or 'while writing'}): free some space and run it again"
    return f"{error.filename or 'the system'}: {error.strerror or error}"


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app(prog_name="trident export")

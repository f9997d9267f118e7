"""`python -m export`: prove a model equal to PyTorch and install it for Triton."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from export.console import StageReporter, print_outcome
from export.embedder_command import run_embedder
from export.embedder_options import EmbedderOptions
from export.manifest import Engine, Precision
from export.pipeline import ExportOptions, export_model
from export.refusals import one_sentence

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def export(
    model: Annotated[str, typer.Option(help="Name to serve under; smollm2 and atlas are known.")],
    source: Annotated[
        Path | None, typer.Option(help="A checkpoint: `trident inspect` knows what can be read.")
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
    embedder: Annotated[
        Literal["mean", "last"] | None,
        typer.Option(help="Not the model itself but NAME_embedding: a text's vector, pooled so."),
    ] = None,
) -> None:
    """Read a model, write its graph, compare it with PyTorch, and install what is equal."""
    if embedder is not None:
        run_embedder("export", EmbedderOptions(model, source, embedder, max_length, repository, force))
        return
    options = ExportOptions(model, source, engine, precision, max_length, repository, output, force)
    with one_sentence("export"):
        with StageReporter() as reporter:
            outcome = export_model(options, reporter.enter)
        print_outcome(options, outcome)


if __name__ == "__main__":
    app(prog_name="trident export")

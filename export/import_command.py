"""`python -m export.import_command`: a checkpoint in any known format becomes a served model."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from export.console import StageReporter, print_graph_outcome, print_outcome
from export.embedder_command import is_encoder, run_embedder
from export.embedder_options import EmbedderOptions
from export.errors import ExportError
from export.formats.detect import detect_format
from export.formats.graph_files import HUB_FOLDER
from export.hub import SCHEME, download
from export.manifest import Precision
from export.pipeline import ExportOptions, check_name, export_model
from export.refusals import one_sentence
from export.sources import require_source

if TYPE_CHECKING:
    from export.formats.onnx_graph import GraphFile

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)

MAX_NAME = 40
PLAIN_NAMES = {"model", "checkpoint", "pytorch_model"}  # a file so called is named after its directory


@app.command()
def import_checkpoint(
    source: Annotated[
        str, typer.Argument(help="A directory, a file, or hf://ORG/NAME.", show_default=False, metavar="PATH")
    ],
    name: Annotated[str | None, typer.Option(help="To serve under; by default after PATH.")] = None,
    precision: Annotated[
        Precision | None, typer.Option(help="Of the weights: int8 by default; a graph stays as it is.")
    ] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="A Jinja file instead of the checkpoint's own template.")
    ] = None,
    max_length: Annotated[int | None, typer.Option(help="A shorter context, in tokens.")] = None,
    example: Annotated[
        Path | None, typer.Option(help="A .npz of inputs to prove a graph with, where random ones don't do.")
    ] = None,
    repository: Annotated[Path, typer.Option(help="Triton's model repository.")] = Path("model_repository"),
    offline: Annotated[bool, typer.Option("--offline", help="Take a hub's files from the cache.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Import anew, even if nothing has changed.")] = False,
) -> None:
    """Recognise a checkpoint, read it, prove its graph equal to PyTorch, and install it."""
    with one_sentence("import"):
        given = name or name_from(source)
        check_name(given)
        path = (
            download(source, offline=offline) if source.startswith(SCHEME) else require_source(Path(source))
        )
        options = ExportOptions(
            model=given,
            source=path,
            precision=precision or "int8",
            max_length=max_length,
            repository=repository,
            force=force,
            chat_template=chat_template,
        )
        if detect_format(path) == "onnx":
            _refuse_for_graphs(precision=precision)
            _import_graph(options, example)
            return
        if is_encoder(path):
            _refuse_for_graphs(precision=precision, chat_template=chat_template)
            run_embedder("import", EmbedderOptions(given, path, None, max_length, repository, force))
            return
        _refuse_example(path, example)
        with StageReporter() as reporter:
            outcome = export_model(options, reporter.enter)
        print_outcome(options, outcome)


def _refuse_for_graphs(**options: object) -> None:
    for name, value in options.items():
        if value is not None:
            flag = f"--{name.replace('_', '-')}"
            raise ExportError(f"{flag} is for language models; this is served as it is: leave it out")


def _import_graph(asked: ExportOptions, example: Path | None) -> None:
    # Here, because they load ONNX and its runtime, which no other format needs so early.
    from export.formats.decoder_graph import is_decoder
    from export.formats.onnx_graph import read_graph

    assert asked.source is not None
    graph = read_graph(asked.source)
    if is_decoder(graph):
        _refuse_example(asked.source, example)
        _import_decoder(asked, graph)
        return
    from export.graph_import import GraphOptions, import_graph

    _refuse_for_graphs(chat_template=asked.chat_template, max_length=asked.max_length)
    options = GraphOptions(asked.model, asked.source, asked.repository, example, asked.force)
    with StageReporter() as reporter:
        outcome = import_graph(options, reporter.enter)
    print_graph_outcome(outcome)


def _import_decoder(asked: ExportOptions, graph: "GraphFile") -> None:
    from export.graph_decoder import import_decoder

    with StageReporter() as reporter:
        outcome = import_decoder(asked, graph, reporter.enter)
    print_outcome(replace(asked, precision=outcome.comparison.precision), outcome)


def _refuse_example(path: Path, example: Path | None) -> None:
    if example is not None:
        raise ExportError(f"{path} is no graph without a cache: --example is for those")


def name_from(source: str) -> str:
    """A name that can be served, after the last part of `source`; ExportError if nothing of it is left."""
    path = Path(source.partition("@")[0] if source.startswith(SCHEME) else source)
    if source.endswith(".gguf") or path.is_file():
        path = path.parent if path.stem in PLAIN_NAMES else path.with_suffix("")
        path = path.parent if path.name == HUB_FOLDER else path
    name = re.sub(r"[^a-z0-9._-]+", "-", path.resolve().name.lower()).strip("-._")[:MAX_NAME]
    if not name:
        raise ExportError(f"no name can be made of {source}: give one with --name")
    return name


if __name__ == "__main__":
    app(prog_name="trident import")

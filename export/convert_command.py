"""`python -m export.convert_command`: a checkpoint in any known format becomes one that training reads."""

import json
from pathlib import Path
from typing import Annotated

import typer

from export.errors import ExportError
from export.formats.imported import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, ImportedModel, with_max_length
from export.formats.readers import read_model
from export.formats.trident import HELD_OUT
from export.refusals import one_sentence
from export.sources import require_source
from training.checkpoint import save_model

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="A directory or a file.", show_default=False)],
    output: Annotated[Path, typer.Argument(help="The model directory to write.", show_default=False)],
    max_length: Annotated[int | None, typer.Option(help="A shorter context, in tokens.")] = None,
) -> None:
    """Read a checkpoint and write it, in float32 and with its tokenizer, as a Trident model directory."""
    with one_sentence("convert"):
        if output.exists():
            raise ExportError(f"{output} exists: give another directory, or remove it")
        model = with_max_length(read_model(require_source(source)), max_length)
        save_model(output, model.decoder, companions=companions(model))
        print(f"Model: {output}")


def companions(model: ImportedModel) -> dict[str, str]:
    """The files that lie beside the weights in a model directory, name -> text."""
    files = {
        TOKENIZER: model.tokenizer.tokenizer,
        TOKENIZER_CONFIG: json.dumps(dict(model.tokenizer.config), indent=2, ensure_ascii=False) + "\n",
        CHAT_TEMPLATE: model.tokenizer.chat_template,
        HELD_OUT: model.held_out,
    }
    return {name: text for name, text in files.items() if text is not None}


if __name__ == "__main__":
    app(prog_name="trident convert")

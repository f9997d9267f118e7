"""`python -m export.inspect_command`: what a checkpoint is and how it would be served."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from export.refusals import one_sentence

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint: a directory or a file.", show_default=False)],
) -> None:
    """Say what a checkpoint holds and how it would be served; reads no weights and changes nothing."""
    # Here, because it loads torch, and a help text must not wait for that.
    from export.inspection import Inspection
    from export.inspection import inspect as inspect_checkpoint
    from export.sources import require_source

    with one_sentence("inspect"):
        found: Inspection = inspect_checkpoint(require_source(path))
        table = Table(show_header=False, title=str(path), title_justify="left")
        for what, how in (*found.rows, *(("odd", oddity) for oddity in found.oddities)):
            table.add_row(what, how)
        Console().print(table)


if __name__ == "__main__":
    app(prog_name="trident inspect")

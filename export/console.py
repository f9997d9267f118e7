"""What a person sees of an export: a line per stage while it runs, a table at the end."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from export.graph_report import GraphOutcome
from export.pipeline import ExportOptions, Outcome

MEGABYTE = 1e6
STAGE_WIDTH = 9


class StageReporter:
    """A spinner and a clock per stage on a terminal; elsewhere one line when a stage has ended."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._live = Progress(*columns, TextColumn("{task.fields[detail]}"), console=self._console)
        self._stage, self._task, self._began = "", TaskID(0), time.monotonic()

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._finish()
        self._live.stop()

    def enter(self, stage: str, detail: str) -> None:
        """Say which stage runs now, and what it does now."""
        if stage != self._stage:
            self._finish()
            self._stage, self._began = stage, time.monotonic()
            self._task = self._live.add_task(stage.ljust(STAGE_WIDTH), total=1, detail=detail)
        self._live.update(self._task, detail=detail)

    def _finish(self) -> None:
        if not self._stage:
            return
        self._live.update(self._task, completed=1, detail="")
        if not self._console.is_terminal:
            seconds = time.monotonic() - self._began
            self._console.print(f"{self._stage.ljust(STAGE_WIDTH)} {seconds:6.1f} s")


def print_outcome(options: ExportOptions, outcome: Outcome, console: Console | None = None) -> None:
    """One sentence if nothing was to be done, else the table of what the export measured."""
    console = console or Console()
    if not outcome.is_new:
        what = f"{options.model} ({options.precision}, {options.engine})"
        console.print(f"{what} is there and unchanged: {outcome.directory}", soft_wrap=True)
        return
    console.print(outcome_table(options, outcome))
    if outcome.note:
        console.print(outcome.note, soft_wrap=True)


def outcome_table(options: ExportOptions, outcome: Outcome) -> Table:
    """Size, errors, agreement and perplexity."""
    report = outcome.comparison
    worst = max(report.scenarios, key=lambda scenario: scenario.max_error)
    quality = report.perplexity
    table = Table(title=f"{options.model}: {options.engine}, {options.precision}", show_header=False)
    size = sum(file.bytes for file in report.artifact.values())
    rows = {
        "size": f"{size / MEGABYTE:.1f} MB",
        "max |Δlogit|": f"{worst.max_error:.2g} ({worst.name}; logits spread by {worst.logit_spread:.2g})",
        "same first choice": f"{quality.top1_agreement:.1%} of {quality.tokens} tokens",
        "perplexity": f"{quality.graph:.3f}, {quality.ratio - 1:+.2%} on {report.reference_name}",
        "read": quality.text,
        "where": str(outcome.directory),
    }
    if report.experts:
        rows["experts compared"] = f"{report.experts.reached} of {report.experts.total}"
    for figure in report.figures:
        rows[figure.name] = f"max |Δ| {figure.max_error:.2g}, of values up to {figure.largest:.2g}"
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def print_graph_outcome(outcome: GraphOutcome, console: Console | None = None) -> None:
    """The same of a model that is no decoder: its comparisons, and what was noticed."""
    console, report = console or Console(), outcome.report
    if not outcome.is_new:
        console.print(f"{report.model} is there and unchanged: {outcome.directory}", soft_wrap=True)
        return
    table = Table(title=f"{report.model}: against {report.reference}", show_header=False)
    size = sum(file.bytes for file in report.artifact.values())
    table.add_row("size", f"{size / MEGABYTE:.1f} MB")
    for check in report.checks:
        table.add_row(check.name, f"max |Δ| {check.max_error:.2g}")
    for note in report.notes:
        table.add_row("note", note)
    table.add_row("where", str(outcome.directory))
    console.print(table)

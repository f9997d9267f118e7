"""An evaluation as tables."""

import math
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from training.baselines import Baselines
from training.evaluate import Report
from training.exact_match import Score
from training.predictions import Doubt, LayerLoad, Quality


def print_report(console: Console, report: Report) -> None:
    """Print every part that was measured."""
    for title, table in _tables(report):
        console.print(f"\n{title}", style="bold", highlight=False)
        console.print(table)


def _tables(report: Report) -> Iterator[tuple[str, Table]]:
    tokens = f"{report.quality.tokens:,} tokens of the validation split"
    yield tokens, _quality_table(report.quality, report.baselines)
    if report.scores:
        yield "Answers that are right to the letter", _score_table(report.scores)
    if report.experts:
        yield "Load of the experts", _expert_table(report.experts)
    if report.uncertainty:
        yield "Rank correlation (Spearman) with a token's loss and error", _doubt_table(report.uncertainty)


def _quality_table(quality: Quality, baselines: Baselines) -> Table:
    table = _table("validation", "model", "bigram", "unigram")
    losses = (quality.loss, baselines.bigram, baselines.unigram)
    table.add_row("loss (nats per token)", *(f"{loss:.4f}" for loss in losses))
    table.add_row("perplexity", *(f"{math.exp(loss):,.2f}" for loss in losses))
    table.add_row("bits per byte", f"{quality.bits_per_byte:.4f}")
    table.add_row("likeliest token right", f"{quality.top1:.2%}")
    table.add_row("calibration error (15 bins)", f"{quality.calibration_error:.4f}")
    table.add_row("Brier score", f"{quality.brier:.4f}")
    return table


def _score_table(scores: dict[str, Score]) -> Table:
    table = _table("test set", "exact", "of", "share")
    for name, result in scores.items():
        table.add_row(name.replace("_", " "), str(result.right), str(result.of), f"{result.share:.2%}")
    return table


def _expert_table(experts: list[LayerLoad]) -> Table:
    table = _table("layer", "shares", "CV", "MaxVio", "dead", "entropy")
    for number, layer in enumerate(experts):
        shares, figures = " ".join(f"{share:.2f}" for share in layer.shares), layer.figures
        numbers = (figures.variation, figures.max_violation)
        table.add_row(
            *(str(number), shares, *(f"{value:.3f}" for value in numbers)),
            *(str(figures.dead), f"{figures.entropy:.3f}"),
        )
    return table


def _doubt_table(uncertainty: dict[str, Doubt]) -> Table:
    table = _table("uncertainty", "loss", "error")
    for name, doubt in uncertainty.items():
        table.add_row(name, _or_constant(doubt.with_loss), _or_constant(doubt.with_error))
    return table


def _or_constant(correlation: float | None) -> str:
    return "constant" if correlation is None else f"{correlation:.3f}"


def _table(first: str, *others: str) -> Table:
    table = Table(first, box=None, pad_edge=False)
    for title in others:
        table.add_column(title, justify="right")
    return table

"""`python -m training train NAME`, `python -m training evaluate NAME` and `python -m training presets`."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.checkpoint import CheckpointError, load_model
from training.decoder import count_parameters
from training.evaluate import Report, evaluate
from training.presets import PRESETS
from training.recipes import RECIPES, Recipe, recipe
from training.run import Interrupted, Run, RunError, data_of, read_recipe
from training.tokenizer import load_tokenizer
from training.trainer import StepReport

RUNS = Path("training/runs")
STOPPED = 130  # what a shell expects after Ctrl-C
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train models and ask them questions.")

Name = Annotated[str, typer.Argument(help=f"One of: {', '.join(RECIPES)}.")]
Output = Annotated[Path | None, typer.Option(help="The run's directory; default training/runs/NAME.")]


@app.command()
def train(
    name: Name,
    steps: Annotated[int | None, typer.Option(min=1, help="Train for another number of steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw weights and data from another seed.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    output: Output = None,
) -> None:
    """Train a model from random weights, evaluate it, and leave it in OUTPUT/production."""
    directory, console = output or RUNS / name, Console()
    if resume and (steps is not None or seed is not None):
        raise RunError("--resume keeps the run's own steps and seed: leave --steps and --seed out")
    changes = {key: value for key, value in (("steps", steps), ("seed", seed)) if value is not None}
    run = Run.resume(directory) if resume else Run.start(directory, _changed(recipe(name), changes))
    _say_where(console, run)
    with _stop_on_signal() as should_stop, _progress(console, run) as on_step:
        report = run.complete(should_stop=should_stop, on_step=on_step)
    console.print(_table(report))
    console.print(f"Model: {run.production}", soft_wrap=True)


@app.command("evaluate")
def evaluate_command(name: Name, output: Output = None) -> None:
    """Ask a finished model the questions of its three test sets again."""
    directory = output or RUNS / name
    known = read_recipe(directory)
    model = directory / "production"
    report = evaluate(load_model(model), load_tokenizer(model), data_of(known), num_cases=known.num_cases)
    Console().print(_table(report))


@app.command()
def presets() -> None:
    """List the named architectures with their true sizes."""
    table = Table("name", "mixer", "ffn", box=None, pad_edge=False)  # as it stands it fits 80 columns
    for title in ("layers", "width", "parameters"):
        table.add_column(title, justify="right")
    for name, config in PRESETS.items():
        mixers, ffns = (" + ".join(dict.fromkeys(names)) for names in (config.mixers, config.ffns))
        sizes = (config.num_layers, config.d_model, count_parameters(config))
        table.add_row(name, mixers, ffns, *(f"{size:,}" for size in sizes))
    Console().print(table)


def _changed(base: Recipe, changes: dict[str, int]) -> Recipe:
    return Recipe.model_validate({**base.model_dump(), **changes})


def _say_where(console: Console, run: Run) -> None:
    done, steps = run.trainer.step, run.recipe.steps
    size = run.trainer.decoder.num_parameters() / 1e6
    begin = f"Resuming after step {done} of {steps}" if done else f"Training for {steps} steps"
    console.print(
        f"{begin}: {size:.2f} M parameters, {run.recipe.threads} threads, in {run.directory}", soft_wrap=True
    )
    for reason in run.passed_over:
        console.print(f"Passed over a checkpoint: {reason}", soft_wrap=True)


@contextmanager
def _stop_on_signal() -> Iterator[Callable[[], bool]]:
    """Ctrl-C and SIGTERM ask for a stop after the running step; a second one acts as usual."""
    asked = threading.Event()

    def ask(number: int, _: object) -> None:
        signal.signal(number, before[signal.Signals(number)])
        asked.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(console: Console, run: Run) -> Iterator[Callable[[StepReport], None]]:
    """A bar on a terminal; elsewhere a line whenever the run validates."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=run.recipe.steps, completed=run.trainer.step)

        def show(report: StepReport) -> None:
            bar.update(task, completed=report.step, description=f"loss {report.loss:.4f}")
            if not console.is_terminal and report.step % run.recipe.validate_every == 0:
                console.print(f"step {report.step} of {run.recipe.steps}: loss {report.loss:.4f}")

        yield show


def _table(report: Report) -> Table:
    table = Table("test set", "exact", "of", "share", title="Answers that are right to the letter")
    for name, result in report.scores.items():
        table.add_row(name.replace("_", " "), str(result.right), str(result.of), f"{result.share:.2%}")
    return table


def main() -> None:
    """Run the command line; what the user can mend is said in one sentence."""
    try:
        app(standalone_mode=False)
    except Interrupted as stop:
        Console(stderr=True).print(f"Stopped after step {stop.step} and saved. Continue with --resume.")
        raise SystemExit(STOPPED) from None
    except (RunError, CheckpointError, KeyError, FloatingPointError) as error:
        Console(stderr=True).print(str(error.args[0]), style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

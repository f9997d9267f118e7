"""`python -m training train NAME`, `python -m training evaluate NAME` and `python -m training presets`."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from accelerate import PartialState
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from training.beginning import RECIPE, RunError, read_tokenizer_files, stamp
from training.checkpoint import CheckpointError, load_model, save_model
from training.data.choice import DataError, Format, choose_data
from training.data.load import load_corpus
from training.decoder import count_parameters
from training.evaluate import evaluate, num_parts, write_evaluation
from training.hardware import HardwareError
from training.memory import keep_freed_memory
from training.presets import PRESETS
from training.recipes import RECIPES, Precision, Recipe
from training.report import print_report
from training.run import (
    HELD_OUT,
    Interrupted,
    Run,
    find_base,
    find_model,
    find_recipe,
    read_recipe,
)
from training.tokenizer import load_tokenizer
from training.trainer import StepReport, reproducible

RUNS = Path("training/runs")
STOPPED = 130  # what a shell expects after Ctrl-C
app = typer.Typer(add_completion=False, no_args_is_help=True, help="Train models and ask them questions.")

Name = Annotated[str, typer.Argument(help=f"A recipe's file, or one of: {', '.join(RECIPES)}.")]
Output = Annotated[Path | None, typer.Option(help="The run's directory; default training/runs/NAME.")]
Data = Annotated[
    list[Path] | None,
    typer.Option(help="Train on this: text, JSON lines of chats, or a directory that `datasets` saved."),
]


@app.command()
def train(
    name: Name,
    steps: Annotated[int | None, typer.Option(min=1, help="Train for another number of steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Draw weights and data from another seed.")] = None,
    data: Data = None,
    format: Annotated[
        Format | None, typer.Option(help="Of the data; default: .jsonl is chat, any other file text.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a run that was stopped.")] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write OUTPUT/tensorboard, too.")
    ] = False,
    mixed_precision: Annotated[
        Precision | None, typer.Option(help="Compute in half precision what bears it.")
    ] = None,
    accumulation: Annotated[
        int | None, typer.Option(min=1, help="Take each batch in so many parts, to save memory.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Compute activations twice, to save memory.")
    ] = False,
    from_: Annotated[
        str | None, typer.Option("--from", help="Begin from a model directory, or a finished run's model.")
    ] = None,
    lora_rank: Annotated[
        int | None, typer.Option(min=1, help="Train a LoRA adapter of this rank, and nothing else.")
    ] = None,
    lora_alpha: Annotated[
        int | None, typer.Option(min=1, help="Weigh the adapter by alpha / rank; default: twice the rank.")
    ] = None,
    lora_targets: Annotated[
        str | None, typer.Option(help="The linear layers to adapt, by commas; default: query,value.")
    ] = None,
    sharded: Annotated[
        bool, typer.Option("--sharded", help="Under torchrun: spread the weights over the ranks (FSDP).")
    ] = False,
    output: Output = None,
) -> None:
    """Train a model from random weights, evaluate it, and leave it in OUTPUT/production."""
    directory, console = output or RUNS / Path(name).stem, Console()
    changes: dict[str, Any] = {"steps": steps, "seed": seed, "mixed_precision": mixed_precision}
    changes |= {"accumulation": accumulation, "gradient_checkpointing": gradient_checkpointing or None}
    changes["sharded"] = sharded or None
    changes["lora"] = _lora(lora_rank, lora_alpha, lora_targets)
    changes["base"] = None if from_ is None else stamp(find_base(from_, RUNS)).model_dump()
    changes["data"] = choose_data(data, format).model_dump() if data else None
    changes = {key: value for key, value in changes.items() if value is not None}
    if resume and changes:
        raise RunError(_unchangeable(changes))
    keep_freed_memory()
    run = Run.resume(directory) if resume else Run.start(directory, _changed(find_recipe(name), changes))
    if tensorboard and run.is_main:
        from training.scalars import TensorBoard  # takes half a second to import

        run.events.mirror(TensorBoard(directory / "tensorboard"))
    console.quiet = not run.is_main
    _complete(run, console)


@app.command("evaluate")
def evaluate_command(
    model: Annotated[str, typer.Argument(help="A run's name, its directory, or a model directory in it.")],
) -> None:
    """Measure a finished model again, print a table and write its evaluation.json."""
    directory, console = find_model(model, RUNS), Console()
    decoder, tokenizer, known = load_model(directory), load_tokenizer(directory), read_recipe(directory)
    data = load_corpus(known.data, seed=known.seed).prepare(tokenizer, known.shape)
    with _evaluation_bar(console, num_parts(data)) as advance, reproducible(threads=known.threads):
        report = evaluate(decoder, tokenizer, data, advance=advance)
    print_report(console, report)
    console.print(f"Written: {write_evaluation(report, directory)}", soft_wrap=True)


@app.command()
def merge(
    model: Annotated[str, typer.Argument(help="A run's name, its directory, or an adapter's directory.")],
    output: Annotated[Path, typer.Argument(help="The model directory to write.")],
) -> None:
    """Write the model that an adapter and its base make as one directory, which stands by itself."""
    directory = find_model(model, RUNS)
    if output.exists():
        raise RunError(f"{output} exists: give another directory")
    names = [name for name in (RECIPE, HELD_OUT) if (directory / name).is_file()]
    beside = {name: (directory / name).read_text(encoding="utf-8") for name in names}
    save_model(output, load_model(directory), companions={**read_tokenizer_files(directory), **beside})
    Console().print(f"Model: {output}", soft_wrap=True)


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


def _lora(rank: int | None, alpha: int | None, targets: str | None) -> dict[str, Any] | None:
    if rank is None:
        if alpha is not None or targets is not None:
            raise RunError("--lora-alpha and --lora-targets belong to an adapter: give --lora-rank, too")
        return None
    names = {} if targets is None else {"targets": tuple(name.strip() for name in targets.split(","))}
    return {"rank": rank, "alpha": 2 * rank if alpha is None else alpha, **names}


def _changed(base: Recipe, changes: dict[str, Any]) -> Recipe:
    return Recipe.model_validate({**base.model_dump(), **changes})


def _unchangeable(changes: dict[str, Any]) -> str:
    options = {"base": "from", "lora": "lora-rank"}
    given = ", ".join(f"--{options.get(key, key).replace('_', '-')}" for key in changes)
    return f"--resume keeps the run's own steps, seed and data, and all else: leave {given} out"


def _complete(run: Run, console: Console) -> None:
    """Do what is left of the run, with a bar, and print what came of it."""
    _say_where(console, run)
    try:
        with _stop_on_signal() as should_stop, _progress(console, run) as on_step:
            report = run.complete(should_stop=should_stop, on_step=on_step)
    finally:
        run.trainer.accelerator.end_training()
    if report is not None:
        print_report(console, report)
        console.print(f"Model: {run.production}", soft_wrap=True)


def _say_where(console: Console, run: Run) -> None:
    done, steps = run.trainer.step, run.recipe.steps
    size = run.trainer.decoder.num_parameters() / 1e6
    begin = f"Resuming after step {done} of {steps}" if done else f"Training for {steps} steps"
    console.print(
        f"{begin}: {size:.2f} M parameters, {run.recipe.threads} threads, in {run.directory}", soft_wrap=True
    )
    console.print(f"Data: {run.data.summary}", soft_wrap=True)
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


@contextmanager
def _evaluation_bar(console: Console, num_parts: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal, nothing elsewhere."""
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=num_parts)
        yield lambda: bar.advance(task)


def main() -> None:
    """Run the command line; what the user can mend is said in one sentence."""
    try:
        app(standalone_mode=False)
    except Interrupted as stop:
        told = Console(stderr=True, quiet=not PartialState().is_main_process)
        told.print(f"Stopped after step {stop.step} and saved. Continue with --resume.")
        raise SystemExit(STOPPED) from None
    except (RunError, CheckpointError, DataError, HardwareError, KeyError, FloatingPointError) as error:
        Console(stderr=True).print(str(error.args[0]), style="red", markup=False, soft_wrap=True)
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()

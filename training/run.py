"""A run on disk: started once, killed at any moment, resumed as if nothing had happened.

training/runs/NAME/
  recipe.json      what is trained and how      tokenizer/     its tokenizer's files
  events.jsonl     what happened                checkpoints/   the last three, to resume from
  base/            with --lora-rank and no --from, the random weights that the adapter is put beside
  milestone/       the model of the best validation loss
  production/      the finished model, with evaluation.json: what export reads
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Self

import torch
from accelerate import Accelerator
from pydantic import ValidationError

from training.beginning import (
    RECIPE,
    TOKENIZER,
    RunError,
    begin,
    first_decoder,
    read_tokenizer_files,
    recipe_text,
    save_trained,
)
from training.checkpoint import ADAPTER_CONFIG, CONFIG, CheckpointError, describe_errors
from training.data.corpus import Corpus
from training.data.load import load_corpus
from training.evaluate import EVALUATION, Report, evaluate
from training.events import EventLog
from training.hardware import build_accelerator
from training.recipes import Recipe, recipe
from training.snapshots import Snapshot, load_newest, save_snapshot, snapshot_paths
from training.tokenizer import load_tokenizer
from training.trainer import StepReport, Trainer, reproducible

HELD_OUT, PRODUCTION = "held_out.txt", "production"


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop, and did)
    """The run stopped on request, after saving; `step` steps are done."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} steps")
        self.step = step


class Run:
    """One run directory with everything in memory to go on. Make one with `start` or `resume`."""

    def __init__(self, directory: Path, recipe: Recipe, corpus: Corpus, accelerator: Accelerator) -> None:
        self.directory = directory
        self.recipe = recipe
        self.tokenizer = load_tokenizer(directory / TOKENIZER)
        self.data = corpus.prepare(self.tokenizer, recipe.shape)
        self.is_main = accelerator.is_main_process
        self.events = EventLog(directory / "events.jsonl", is_silent=not self.is_main)
        self.best_validation: float | None = None
        self.passed_over: list[str] = []
        torch.manual_seed(recipe.seed)  # before the decoder draws its weights
        decoder, data = first_decoder(recipe, directory), self.data
        self.trainer = Trainer(recipe, decoder, data.batches, data.validation, accelerator)

    @classmethod
    def start(cls, directory: Path, recipe: Recipe) -> Self:
        """A new run. Raises RunError if `directory` exists, DataError for data that can't be trained on.

        Of many ranks the first writes the directory, and the others read it.
        """
        accelerator = build_accelerator(recipe.mixed_precision)
        corpus = begin(directory, recipe) if accelerator.is_main_process else None
        accelerator.wait_for_everyone()
        recipe = read_recipe(directory)
        run = cls(directory, recipe, corpus or load_corpus(recipe.data, seed=recipe.seed), accelerator)
        run.events.write("start", steps=recipe.steps, parameters=run.trainer.decoder.num_parameters())
        return run

    @classmethod
    def resume(cls, directory: Path) -> Self:
        """The run as its newest whole checkpoint left it, or from step 0 if it had none yet.

        Corrupt checkpoints that were passed over are in the event log. Raises RunError, CheckpointError, and
        DataError if the data have changed.
        """
        recipe = read_recipe(directory)
        accelerator = build_accelerator(recipe.mixed_precision)
        run = cls(directory, recipe, load_corpus(recipe.data, seed=recipe.seed), accelerator)
        if snapshot_paths(run.checkpoints):
            run._restore()
        accelerator.wait_for_everyone()  # what one rank reads another must not clear away
        if run.is_main:
            for leftover in (*directory.glob(".*"), *run.checkpoints.glob(".*")):  # half-written when killed
                shutil.rmtree(leftover)
        run.events.write("resume", step=run.trainer.step, passed_over=run.passed_over)
        return run

    def _restore(self) -> None:
        snapshot, passed = load_newest(self.checkpoints)
        self.trainer.restore(snapshot.step, snapshot.tensors)
        self.best_validation = snapshot.best_validation
        self.passed_over = [str(error) for error in passed]

    @property
    def checkpoints(self) -> Path:
        """Where the rolling checkpoints lie."""
        return self.directory / "checkpoints"

    @property
    def production(self) -> Path:
        """Where the finished model goes."""
        return self.directory / PRODUCTION

    def complete(
        self, *, should_stop: Callable[[], bool], on_step: Callable[[StepReport], None]
    ) -> Report | None:
        """Do the steps that are left, evaluate, write `production`. Raises Interrupted, after saving.

        All ranks stop when one is asked to. Only the first evaluates; the others return None.
        """
        with reproducible(threads=self.recipe.threads):
            self._train(should_stop, on_step)
            return self._finish()

    def _train(self, should_stop: Callable[[], bool], on_step: Callable[[StepReport], None]) -> None:
        recipe, began = self.recipe, time.monotonic()
        num_tokens = 0
        while self.trainer.step < recipe.steps:
            report = self.trainer.train_step()
            num_tokens += report.num_tokens
            is_last, step = report.step == recipe.steps, report.step
            if step % recipe.log_every == 0 or is_last:
                self._log(report, tokens_per_second=num_tokens / (time.monotonic() - began))
            if step % recipe.validate_every == 0 or is_last:
                self._validate()
            stop = self.trainer.any_rank(should_stop())
            if step % recipe.save_every == 0 or is_last or stop:
                self._save()
            on_step(report)
            if stop and not is_last:
                raise Interrupted(step)

    def _log(self, report: StepReport, *, tokens_per_second: float) -> None:
        rounded = [[round(share, 4) for share in layer] for layer in report.expert_load]
        self.events.write(
            "step",
            step=report.step,
            loss=report.loss,
            routing_loss=report.routing_loss,
            belief_loss=report.belief_loss,
            learning_rate=report.learning_rate,
            gradient_norm=report.gradient_norm,
            tokens_per_second=round(tokens_per_second, 1),
            expert_load=rounded,
        )

    def _validate(self) -> None:
        loss = self.trainer.validate()
        is_best = self.best_validation is None or loss < self.best_validation
        self.events.write("validation", step=self.trainer.step, loss=loss, is_best=is_best)
        if is_best:
            self.best_validation = loss
            decoder = self.trainer.whole_decoder()
            if self.is_main:
                path = self.directory / "milestone"
                save_trained(path, decoder, self.recipe, companions=self._companions())

    def _save(self) -> None:
        snapshot = Snapshot(self.trainer.step, self.best_validation, self.trainer.tensors())
        if self.is_main:
            path = save_snapshot(self.checkpoints, snapshot)
            self.events.write("checkpoint", step=self.trainer.step, path=path.name)

    def _finish(self) -> Report | None:
        decoder = self.trainer.whole_decoder()
        if not self.is_main:
            return None
        report = evaluate(decoder, self.tokenizer, self.data)
        files = {**self._companions(), EVALUATION: report.as_text()}
        save_trained(self.production, decoder, self.recipe, companions=files)
        shares = {name: score.share for name, score in report.scores.items()}
        losses = {"loss": report.quality.loss, **asdict(report.baselines)}
        self.events.write("end", step=self.trainer.step, path=self.production.name, **losses, **shares)
        return report

    def _companions(self) -> dict[str, str]:
        """What makes a model directory one that can be exported and evaluated again."""
        own = {RECIPE: recipe_text(self.recipe), HELD_OUT: self.data.held_out}
        return {**read_tokenizer_files(self.directory / TOKENIZER), **own}


def find_recipe(name: str) -> Recipe:
    """The recipe called `name`, or the one in the JSON file `name`. Raises KeyError, CheckpointError."""
    path = Path(name)
    return _parse_recipe(path) if path.suffix == ".json" and path.is_file() else recipe(name)


def find_base(name: str, runs: Path) -> Path:
    """The model directory `name`, or the finished model of the run called `name` in `runs`.

    Raises RunError if it is neither.
    """
    for directory in (Path(name), Path(name) / PRODUCTION, runs / name / PRODUCTION):
        if (directory / CONFIG).is_file():
            return directory
    raise RunError(
        f"--from {name}: neither a model directory nor a finished run in {runs}. `trident convert` makes a "
        "model directory of other formats, `trident merge` one of an adapter"
    )


def find_model(name: str, runs: Path) -> Path:
    """The model directory of the run called `name` in `runs`, of a run's directory, or `name` itself.

    Raises RunError if there is none, or the run is not finished.
    """
    directory = Path(name) if Path(name).is_dir() else runs / name
    if not (directory / RECIPE).is_file():
        raise RunError(f"{directory / RECIPE} is missing: give a run's name, its directory or a model in it")
    if (directory / CONFIG).is_file() or (directory / ADAPTER_CONFIG).is_file():
        return directory
    if not (directory / PRODUCTION).is_dir():
        raise RunError(
            f"{directory} is not finished: continue it with --resume, or evaluate {directory / 'milestone'}"
        )
    return directory / PRODUCTION


def read_recipe(directory: Path) -> Recipe:
    """The recipe of a run that was started. Raises RunError if there is none, else CheckpointError."""
    path = directory / RECIPE
    if not path.is_file():
        raise RunError(f"{path} is missing, so no run was started there: train without --resume")
    return _parse_recipe(path)


def _parse_recipe(path: Path) -> Recipe:
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path}: {describe_errors(error)}") from error

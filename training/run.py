"""A run on disk: started once, killed at any moment, resumed as if nothing had happened.

training/runs/NAME/
  recipe.json      what is trained and how      tokenizer/     its tokenizer's files
  events.jsonl     what happened                checkpoints/   the last three, to resume from
  milestone/       the model of the best validation loss
  production/      the finished model, with evaluation.json: what export reads
"""

import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import torch
from pydantic import ValidationError
from tokenizers import Tokenizer

from training.chat import CHAT_FORMATS, ChatFormat, Conversation, Message, segments
from training.checkpoint import CheckpointError, atomic_directory, describe_errors, save_model
from training.data.atlas import Atlas, Case
from training.data.batches import Batch, Batches, encode, pad_rows
from training.decoder import Decoder
from training.evaluate import Report, evaluate
from training.events import EventLog
from training.recipes import Recipe
from training.snapshots import Snapshot, load_newest, save_snapshot, snapshot_paths
from training.tokenizer import load_tokenizer, tokenizer_files, train_tokenizer
from training.trainer import StepReport, Trainer, reproducible

TOKENIZER_EPOCHS = 2
VALIDATION_BATCH = 64


class RunError(ValueError):
    """A run that cannot be started or resumed as asked; the message says what to do."""


class Interrupted(Exception):  # noqa: N818 (not an error: the run was asked to stop, and did)
    """The run stopped on request, after saving; `step` steps are done."""

    def __init__(self, step: int) -> None:
        super().__init__(f"stopped after {step} steps")
        self.step = step


class Run:
    """One run directory with everything in memory to go on. Make one with `start` or `resume`."""

    def __init__(self, directory: Path, recipe: Recipe, tokenizer: Tokenizer, data: Atlas) -> None:
        self.directory = directory
        self.recipe = recipe
        self.tokenizer = tokenizer
        self.data = data
        self.events = EventLog(directory / "events.jsonl")
        self.best_validation: float | None = None
        self.passed_over: list[str] = []
        torch.manual_seed(recipe.seed)  # before the decoder draws its weights
        batches = Batches(data, tokenizer, batch_size=recipe.batch_size, seed=recipe.seed)
        validation = validation_batches(data.validation()[: recipe.num_cases], tokenizer)
        self.trainer = Trainer(recipe, Decoder(recipe.model), batches, validation)

    @classmethod
    def start(cls, directory: Path, recipe: Recipe) -> Self:
        """A new run. Raises RunError if `directory` exists."""
        if directory.exists():
            raise RunError(
                f"{directory} exists: continue it with --resume, remove it, or give another --output"
            )
        data = data_of(recipe)
        chat = CHAT_FORMATS[recipe.chat]
        tokenizer = train_tokenizer(training_texts(data, chat), vocab_size=recipe.model.vocab_size, chat=chat)
        model = recipe.model.model_copy(update={"vocab_size": tokenizer.get_vocab_size()})
        recipe = recipe.model_copy(update={"model": model})
        with atomic_directory(directory) as fresh:
            (fresh / "recipe.json").write_text(recipe.model_dump_json(indent=2) + "\n", encoding="utf-8")
            (fresh / "tokenizer").mkdir()
            for name, text in tokenizer_files(tokenizer).items():
                (fresh / "tokenizer" / name).write_text(text, encoding="utf-8")
        run = cls(directory, recipe, load_tokenizer(directory / "tokenizer"), data)
        run.events.write("start", steps=recipe.steps, parameters=run.trainer.decoder.num_parameters())
        return run

    @classmethod
    def resume(cls, directory: Path) -> Self:
        """The run as its newest whole checkpoint left it, or from step 0 if it had none yet.

        Corrupt checkpoints that were passed over are in the event log. Raises RunError, CheckpointError.
        """
        recipe = read_recipe(directory)
        run = cls(directory, recipe, load_tokenizer(directory / "tokenizer"), data_of(recipe))
        for leftover in (*directory.glob(".*"), *run.checkpoints.glob(".*")):  # half-written when killed
            shutil.rmtree(leftover)
        if snapshot_paths(run.checkpoints):
            run._restore()
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
        return self.directory / "production"

    def complete(self, *, should_stop: Callable[[], bool], on_step: Callable[[StepReport], None]) -> Report:
        """Do the steps that are left, evaluate, write `production`. Raises Interrupted, after saving."""
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
            stop = should_stop()
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
            files = tokenizer_files(self.tokenizer)
            save_model(self.directory / "milestone", self.trainer.decoder, companions=files, replace=True)

    def _save(self) -> None:
        snapshot = Snapshot(self.trainer.step, self.best_validation, self.trainer.tensors())
        path = save_snapshot(self.checkpoints, snapshot)
        self.events.write("checkpoint", step=self.trainer.step, path=path.name)

    def _finish(self) -> Report:
        report = evaluate(self.trainer.decoder, self.tokenizer, self.data, num_cases=self.recipe.num_cases)
        text = json.dumps(report.as_json(), indent=2, ensure_ascii=False) + "\n"
        files = {**tokenizer_files(self.tokenizer), "evaluation.json": text}
        save_model(self.production, self.trainer.decoder, companions=files, replace=True)
        shares = {name: score.share for name, score in report.scores.items()}
        self.events.write("end", step=self.trainer.step, path=self.production.name, **shares)
        return report


def read_recipe(directory: Path) -> Recipe:
    """The recipe of a run that was started. Raises RunError if there is none, else CheckpointError."""
    path = directory / "recipe.json"
    if not path.is_file():
        raise RunError(f"{path} is missing, so no run was started there: train without --resume")
    try:
        return Recipe.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{path}: {describe_errors(error)}") from error


def data_of(recipe: Recipe) -> Atlas:
    """The data set that a recipe trains on and is tested on."""
    return Atlas(seed=recipe.seed, num_countries=recipe.num_countries)


def training_texts(data: Atlas, chat: ChatFormat) -> list[str]:
    """What the tokenizer learns from: two epochs of training text, nothing of the tests."""
    conversations = map(data.conversation, range(TOKENIZER_EPOCHS * data.epoch_length))
    return [text for conversation in conversations for text, _ in segments(conversation, chat)]


def validation_batches(cases: Sequence[Case], tokenizer: Tokenizer) -> list[Batch]:
    """The validation cases with their answers, in batches of like length."""
    conversations = [Conversation((*case.messages, Message("assistant", case.answer))) for case in cases]
    rows = sorted(encode(conversations, tokenizer), key=lambda row: len(row[0]))
    starts = range(0, len(rows), VALIDATION_BATCH)
    return [pad_rows(rows[start : start + VALIDATION_BATCH], tokenizer) for start in starts]

"""Runs on data of one's own: trained, stopped, resumed to the same bits, evaluated, and refused."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.__main__ import main
from training.checkpoint import load_model
from training.data.choice import DataError, FileData
from training.events import read_events
from training.recipes import Recipe, recipe
from training.run import Interrupted, Run

NAME = "retnet-moe-tiny"
STORY = "The cat sat on the mat. A dog came in and the cat ran up the tree. Then it rained all day.\n"
KINDS = ("text", "chat", "dataset")


def never() -> bool:
    return False


def ignore(report: object) -> None:
    """No progress is shown."""


def make(kind: str, directory: Path) -> Path:
    """Sixty documents or conversations in the form of `kind`."""
    texts = [f"{n}. {STORY}" for n in range(60)]
    turns = [
        [{"role": "user", "content": f"What did {n} do?"}, {"role": "assistant", "content": text}]
        for n, text in enumerate(texts)
    ]
    if kind == "dataset":
        Dataset.from_dict({"messages": turns}).save_to_disk(directory / "saved")
        return directory / "saved"
    path = directory / ("talks.jsonl" if kind == "chat" else "story.txt")
    lines = [json.dumps({"messages": talk}) for talk in turns]
    path.write_text("\n".join(lines) if kind == "chat" else "<|endoftext|>\n".join(texts))
    return path


def quick(kind: str, path: Path) -> Recipe:
    base = recipe(NAME).model_dump()
    changes = {"steps": 8, "warmup_steps": 2, "save_every": 4, "validate_every": 4, "num_cases": 4}
    data = FileData(kind=kind, paths=(path,))  # type: ignore[arg-type]
    return Recipe.model_validate({**base, **changes, "data": data.model_dump()})


def stop_after(step: int) -> Any:
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= step


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
    main()


@pytest.mark.parametrize("kind", KINDS)
def test_a_stopped_run_resumes_to_the_same_bits(kind: str, tmp_path: Path) -> None:
    known = quick(kind, make(kind, tmp_path))
    Run.start(tmp_path / "straight", known).complete(should_stop=never, on_step=ignore)
    with pytest.raises(Interrupted):
        Run.start(tmp_path / "stopped", known).complete(should_stop=stop_after(3), on_step=ignore)
    Run.resume(tmp_path / "stopped").complete(should_stop=never, on_step=ignore)
    for name in ("model.safetensors", "evaluation.json", "held_out.txt", "recipe.json"):
        straight, stopped = (tmp_path / run / "production" / name for run in ("straight", "stopped"))
        assert straight.read_bytes() == stopped.read_bytes(), name


@pytest.mark.parametrize("kind", KINDS)
def test_the_command_line_trains_on_it_and_says_what_is_held_out(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make(kind, tmp_path)
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "train", NAME, "--steps", 2, "--data", path.relative_to(tmp_path))
    printed = capsys.readouterr().out
    assert "to train on" in printed
    assert all(word in printed for word in ("held out", "bigram", "unigram", "bits per byte", "MaxVio"))
    production = tmp_path / "training/runs" / NAME / "production"
    saved = json.loads((production / "recipe.json").read_text())["data"]
    assert (saved["kind"], saved["paths"]) == (kind, [str(path)])
    assert "The cat sat on the mat." in (production / "held_out.txt").read_text()


def test_evaluating_again_writes_the_same_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    known = quick("chat", make("chat", tmp_path))
    run = tmp_path / "run"
    Run.start(run, known).complete(should_stop=never, on_step=ignore)
    path = run / "production" / "evaluation.json"
    before = path.read_text()
    for model in (run, run / "production", run / "milestone"):
        path.unlink(missing_ok=True)
        call(monkeypatch, "evaluate", model)
        assert "Answers that are right to the letter" in capsys.readouterr().out
        if model.name != "milestone":
            assert path.read_text() == before
    assert (run / "milestone" / "evaluation.json").is_file()
    assert not list(run.rglob(".*"))


def test_the_evaluation_has_every_figure(tmp_path: Path) -> None:
    run = tmp_path / "run"
    report = Run.start(run, quick("chat", make("chat", tmp_path))).complete(should_stop=never, on_step=ignore)
    written = json.loads((run / "production" / "evaluation.json").read_text())
    assert written == json.loads(report.as_text())
    assert written["quality"]["loss"] == pytest.approx(
        [e["loss"] for e in read_events(run / "events.jsonl") if e["event"] == "validation"][-1], rel=1e-5
    )  # float32 sums, here per token, there per batch
    assert 0 < written["baselines"]["bigram"] < written["baselines"]["unigram"]
    assert [len(layer["shares"]) for layer in written["experts"]] == [4, 4]
    assert written["scores"]["held_out"]["of"] == 4
    end = list(read_events(run / "events.jsonl"))[-1]
    assert end["bigram"] == written["baselines"]["bigram"]
    assert end["loss"] == written["quality"]["loss"]


def test_data_that_changed_are_refused_on_resume(tmp_path: Path) -> None:
    path = make("text", tmp_path)
    with pytest.raises(Interrupted):
        Run.start(tmp_path / "run", quick("text", path)).complete(should_stop=stop_after(2), on_step=ignore)
    path.write_text(path.read_text() + "more")
    with pytest.raises(DataError, match="has changed since the run was started"):
        Run.resume(tmp_path / "run")


def test_a_recipe_file_is_trained_as_it_stands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = quick("text", make("text", tmp_path)).model_copy(update={"sequence_length": 16, "steps": 1})
    (tmp_path / "mine.json").write_text(known.model_dump_json())
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "train", "mine.json")
    production = tmp_path / "training/runs/mine/production"
    saved = Recipe.model_validate_json((production / "recipe.json").read_text())
    assert saved.sequence_length == 16
    assert load_model(production).config.mixer == "retention"


def test_tensorboard_shows_the_events_of_the_run_and_of_its_resumption(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = make("chat", tmp_path), tmp_path / "run"
    call(monkeypatch, "train", NAME, "--steps", 3, "--data", path, "--output", run)
    call(monkeypatch, "train", NAME, "--resume", "--tensorboard", "--output", run)
    shown = EventAccumulator(str(run / "tensorboard"))
    shown.Reload()
    logged = [e["loss"] for e in read_events(run / "events.jsonl") if e["event"] == "step"]
    assert [e.value for e in shown.Scalars("train/loss")] == pytest.approx(logged, rel=1e-6)  # float32 there


def test_a_row_longer_than_the_context_is_refused() -> None:
    base = recipe(NAME).model_dump()
    with pytest.raises(ValueError, match="sequence_length is 4096, but the model's max_length is"):
        Recipe.model_validate({**base, "sequence_length": 4096})


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.txt", b"", "a.txt: there is no text in it"),
        ("a.txt", "é".encode("latin-1"), "a.txt, line 1: byte 0xe9 is not UTF-8"),
        ("a.txt", b"one document only", "documents: 1 found, 1 of them different; at least 2 are needed"),
        ("a.txt", b"<|endoftext|>\n", "a.txt: there is no text in it"),
        ("a.jsonl", b"", "a.jsonl is empty: one conversation a line is expected"),
        ("a.jsonl", b'{"text": "x"}', "a.jsonl, line 1: messages"),
        ("missing.txt", None, "missing.txt does not exist"),
        (".", None, ". is a directory, but not one that `datasets` saved"),
    ],
)
def test_hostile_data_are_one_sentence_and_leave_nothing(
    name: str,
    content: bytes | None,
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path(name).write_bytes(content)
    with pytest.raises(SystemExit, match="1"):
        call(monkeypatch, "train", NAME, "--data", name)
    error = capsys.readouterr().err
    assert sentence in error
    assert len(error.strip().split("\n")) == 1
    assert not Path("training").exists()


def test_five_megabytes_on_one_line_are_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "long.txt").write_text("all work and no play makes jack a dull boy " * 125_000)
    monkeypatch.chdir(tmp_path)
    call(monkeypatch, "train", NAME, "--steps", 1, "--data", "long.txt", "--output", "run")
    assert len((tmp_path / "run/production/held_out.txt").read_text()) > 10_000


def test_an_unfinished_run_is_not_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    Run.start(run, quick("text", make("text", tmp_path)))
    with pytest.raises(SystemExit, match="1"):
        call(monkeypatch, "evaluate", run)
    assert f"{run} is not finished: continue it with --resume, or evaluate {run}/milestone" in (
        capsys.readouterr().err
    )

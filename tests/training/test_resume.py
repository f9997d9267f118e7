"""A run on disk: refused, stopped, killed, resumed; the end is the same to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from training.__main__ import main
from training.checkpoint import CheckpointError, load_model
from training.events import read_events
from training.recipes import Recipe, recipe
from training.run import Interrupted, Run, RunError
from training.snapshots import TENSORS, snapshot_paths

NAME = "retnet-moe-tiny"
PATIENCE = 60.0  # seconds; a subprocess that needs longer hangs


def short(**changes: object) -> Recipe:
    """A run of a second: 16 steps on two countries, saved every 4."""
    base = recipe(NAME).model_dump()
    quick = {"steps": 16, "warmup_steps": 4, "save_every": 4, "validate_every": 8}
    quick["data"] = {"kind": "atlas", "num_countries": 2}
    return Recipe.model_validate({**base, **quick, **changes})


def never() -> bool:
    return False


def ignore(report: object) -> None:
    """No progress is shown."""


def losses(directory: Path) -> dict[int, float]:
    """The last loss that was logged for each step."""
    return {e["step"]: e["loss"] for e in read_events(directory / "events.jsonl") if e["event"] == "step"}


def weights(directory: Path) -> bytes:
    return (directory / "production" / "model.safetensors").read_bytes()


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The short run, uninterrupted."""
    directory = tmp_path_factory.mktemp("runs") / "straight"
    Run.start(directory, short()).complete(should_stop=never, on_step=ignore)
    return directory


def test_a_run_leaves_what_export_reads_and_what_resume_reads(straight: Path) -> None:
    assert {path.name for path in (straight / "production").iterdir()} == {
        *("config.json", "model.safetensors", "evaluation.json", "recipe.json", "held_out.txt"),
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"),
    }
    assert (
        load_model(straight / "production").num_parameters()
        == load_model(straight / "milestone").num_parameters()
    )
    assert [path.name for path in snapshot_paths(straight / "checkpoints")] == [
        *("step-000008", "step-000012", "step-000016")
    ]
    scores = json.loads((straight / "production" / "evaluation.json").read_text())["scores"]
    assert set(scores) == {"held_out", "unseen_templates", "out_of_domain"}
    assert all(0 <= s["share"] == s["right"] / s["of"] for s in scores.values())


def test_the_event_stream_tells_the_whole_run(straight: Path) -> None:
    events = list(read_events(straight / "events.jsonl"))
    kinds = [event["event"] for event in events]
    assert (kinds[0], kinds[-1]) == ("start", "end")
    assert kinds.count("step") == 16
    assert [e["step"] for e in events if e["event"] == "checkpoint"] == [4, 8, 12, 16]
    assert [e["step"] for e in events if e["event"] == "validation"] == [8, 16]
    validations = [e for e in events if e["event"] == "validation"]
    best = [min(e["loss"] for e in validations[: i + 1]) for i in range(len(validations))]
    assert [e["is_best"] for e in validations] == [
        e["loss"] == least for e, least in zip(validations, best, strict=True)
    ]
    step = next(event for event in events if event["event"] == "step")
    assert set(step) == {
        *("event", "step", "loss", "routing_loss", "learning_rate", "gradient_norm"),
        *("belief_loss", "tokens_per_second", "expert_load"),
    }


def test_the_same_recipe_gives_the_same_weights(straight: Path, tmp_path: Path) -> None:
    Run.start(tmp_path / "again", short()).complete(should_stop=never, on_step=ignore)
    assert weights(tmp_path / "again") == weights(straight)
    assert losses(tmp_path / "again") == losses(straight)


def stop_after(step: int) -> Any:
    """A should_stop that asks for a stop from `step` calls on."""
    calls = iter(range(1, 10**6))
    return lambda: next(calls) >= step


def test_a_stopped_run_is_saved_at_once_and_resumes_to_the_same_end(straight: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(Interrupted, match="stopped after 6 steps"):
        Run.start(directory, short()).complete(should_stop=stop_after(6), on_step=ignore)
    run = Run.resume(directory)
    assert run.trainer.step == 6
    run.complete(should_stop=never, on_step=ignore)
    assert weights(directory) == weights(straight)
    assert losses(directory) == losses(straight)


def test_a_corrupt_checkpoint_is_told_and_the_one_before_reaches_the_same_end(
    straight: Path, tmp_path: Path
) -> None:
    directory = tmp_path / "run"
    with pytest.raises(Interrupted):
        Run.start(directory, short()).complete(should_stop=stop_after(11), on_step=ignore)
    newest = snapshot_paths(directory / "checkpoints")[-1]
    (newest / TENSORS).write_bytes(b"")
    run = Run.resume(directory)
    assert run.trainer.step == 8
    assert [f"{newest.name}/{TENSORS} is corrupt" in reason for reason in run.passed_over] == [True]
    run.complete(should_stop=never, on_step=ignore)
    assert weights(directory) == weights(straight)


def test_what_a_killed_process_left_half_written_is_cleared_away(tmp_path: Path) -> None:
    directory = tmp_path / "run"
    with pytest.raises(Interrupted):
        Run.start(directory, short()).complete(should_stop=stop_after(4), on_step=ignore)
    (directory / ".milestone.x1y2" / "new").mkdir(parents=True)
    (directory / "checkpoints" / ".step-000008.abcd").mkdir()
    assert Run.resume(directory).trainer.step == 4
    assert not list(directory.rglob(".*"))


def test_a_run_killed_before_its_first_checkpoint_begins_again(straight: Path, tmp_path: Path) -> None:
    Run.start(tmp_path / "run", short())
    run = Run.resume(tmp_path / "run")
    assert run.trainer.step == 0
    run.complete(should_stop=never, on_step=ignore)
    assert weights(tmp_path / "run") == weights(straight)


def test_a_finished_run_resumes_to_its_own_evaluation(straight: Path) -> None:
    before = weights(straight)
    report = Run.resume(straight).complete(should_stop=never, on_step=ignore)
    assert weights(straight) == before
    assert json.loads((straight / "production" / "evaluation.json").read_text())["scores"] == json.loads(
        json.dumps(report.as_json()["scores"])
    )


def test_a_broken_recipe_is_named(tmp_path: Path) -> None:
    Run.start(tmp_path / "run", short())
    (tmp_path / "run" / "recipe.json").write_text('{"steps": 0}')
    with pytest.raises(CheckpointError, match=r"recipe\.json: .*steps = 0: Input should be greater than 0"):
        Run.resume(tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            ["train", NAME, "--output", "."],
            ". exists: continue it with --resume, remove it, or give another --output",
        ),
        (
            ["train", NAME, "--output", "none", "--resume"],
            "none/recipe.json is missing, so no run was started there",
        ),
        (["train", NAME, "--resume", "--steps", "9"], "--resume keeps the run's own steps, seed and data"),
        (["train", "atlus"], "unknown recipe 'atlus'; known: arslm-tiny, atlas"),
        (["evaluate", "none"], "none/recipe.json is missing: give a run's name"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    arguments: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["training", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit, match="1"):
        main()
    assert sentence in capsys.readouterr().err


def test_a_run_directory_is_never_overwritten(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists"):
        Run.start(tmp_path, short())


def test_the_command_line_trains_evaluates_and_prints_three_scores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments in (["train", NAME, "--steps", "2", "--seed", "3"], ["evaluate", NAME]):
        monkeypatch.setattr(sys, "argv", ["training", *arguments])
        main()
        printed = capsys.readouterr().out
        assert all(name in printed for name in ("held out", "unseen templates", "out of domain"))
    saved = Recipe.model_validate_json((tmp_path / "training/runs" / NAME / "recipe.json").read_text())
    assert (saved.steps, saved.seed) == (2, 3)


def start(directory: Path, *options: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "training", "train", NAME, "--output", str(directory), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )


def wait_for_step(process: subprocess.Popen[str], directory: Path, step: int) -> None:
    path, deadline = directory / "events.jsonl", time.monotonic() + PATIENCE
    while not path.exists() or max(losses(directory), default=0) < step:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"step {step} was not reached"
        time.sleep(0.002)


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=PATIENCE)
    return output


@pytest.mark.slow
def test_killed_at_five_random_moments_a_run_resumes_to_the_same_end(tmp_path: Path) -> None:
    reference, killed = start(tmp_path / "reference"), tmp_path / "killed"
    assert "Model:" in finish(reference)
    rng = random.Random(time.time_ns())
    moments = sorted(rng.sample(range(1, recipe(NAME).steps - 1), 5))
    for i, moment in enumerate(moments):
        process = start(killed, *(["--resume"] if i else []))
        wait_for_step(process, killed, moment)
        time.sleep(rng.random() * 0.02)  # anywhere within a step, or within writing a checkpoint
        process.send_signal(signal.SIGKILL)
        finish(process)
        assert process.returncode == -signal.SIGKILL, f"killed at {moments}"
    assert "Model:" in finish(start(killed, "--resume"))
    last = recipe(NAME).steps
    assert losses(killed)[last] == losses(tmp_path / "reference")[last], f"killed at {moments}"
    assert losses(killed) == losses(tmp_path / "reference")
    assert weights(killed) == weights(tmp_path / "reference")
    assert not list(killed.rglob(".*"))


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    process = start(tmp_path / "run")
    wait_for_step(process, tmp_path / "run", 3)
    process.send_signal(signal.SIGINT)
    output = finish(process)
    assert process.returncode == 130
    assert "and saved. Continue with --resume." in output
    assert "Traceback" not in output
    run = Run.resume(tmp_path / "run")
    assert f"Stopped after step {run.trainer.step} and saved" in output
    assert run.trainer.step >= 3

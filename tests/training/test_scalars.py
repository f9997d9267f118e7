"""TensorBoard's files say what the event stream says."""

from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from training.events import EventLog, read_events
from training.scalars import TensorBoard

LOAD = [[0.25, 0.75], [0.5, 0.5]]


def scalars(directory: Path) -> dict[str, list[tuple[int, float]]]:
    """Every scalar's (step, value) as TensorBoard itself reads them."""
    read = EventAccumulator(str(directory))
    read.Reload()
    return {name: [(e.step, e.value) for e in read.Scalars(name)] for name in read.Tags()["scalars"]}


def log_steps(log: EventLog, *steps: int) -> None:
    for step in steps:
        log.write("step", step=step, loss=1 / step, learning_rate=0.1, expert_load=LOAD)


def test_losses_rates_and_loads_are_scalars(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.write("start", steps=2, parameters=10)
    log_steps(log, 1)
    log.mirror(TensorBoard(tmp_path / "tensorboard"))
    log_steps(log, 2)
    log.write("validation", step=2, loss=0.5, is_best=True)
    log.write("checkpoint", step=2, path="step-000002")
    shown = scalars(tmp_path / "tensorboard")
    assert shown["train/loss"] == [(1, 1.0), (2, 0.5)]
    assert shown["validation/loss"] == [(2, 0.5)]
    assert shown["train/learning_rate"] == [(1, pytest.approx(0.1)), (2, pytest.approx(0.1))]
    assert shown["experts/layer 0/1"] == [(1, 0.75), (2, 0.75)]
    assert {name for name in shown if name.startswith("experts")} == {
        f"experts/layer {layer}/{expert}" for layer in range(2) for expert in range(2)
    }


def test_after_a_resume_there_is_one_line_made_from_the_events(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl")
    log.mirror(TensorBoard(tmp_path / "tensorboard"))
    log_steps(log, 1, 2)
    again = EventLog(tmp_path / "events.jsonl")
    again.mirror(TensorBoard(tmp_path / "tensorboard"))
    log_steps(again, 3)
    assert [step for step, _ in scalars(tmp_path / "tensorboard")["train/loss"]] == [1, 2, 3]


def test_a_mirror_gets_every_event_once_and_in_order(tmp_path: Path) -> None:
    class Collecting:
        def __init__(self) -> None:
            self.seen: list[dict[str, Any]] = []

        def write(self, event: dict[str, Any]) -> None:
            self.seen.append(event)

    log, mirror = EventLog(tmp_path / "events.jsonl"), Collecting()
    log.write("start")
    log.mirror(mirror)
    log_steps(log, 1)
    assert mirror.seen == list(read_events(tmp_path / "events.jsonl"))

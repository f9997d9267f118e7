"""The event stream: whole lines, only appended, even after a kill."""

from pathlib import Path

import pytest

from training.events import EventLog, read_events


def test_events_come_back_in_order_with_their_fields(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "run" / "events.jsonl")
    log.write("start", steps=3)
    log.write("step", step=1, loss=2.5, expert_load=[[0.25, 0.75]])
    assert list(read_events(tmp_path / "run" / "events.jsonl")) == [
        {"event": "start", "steps": 3},
        {"event": "step", "step": 1, "loss": 2.5, "expert_load": [[0.25, 0.75]]},
    ]


def test_a_new_log_on_an_old_file_appends(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    EventLog(path).write("start")
    EventLog(path).write("resume")
    assert [event["event"] for event in read_events(path)] == ["start", "resume"]


def test_a_half_written_line_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start"}\n{"event": "st')
    EventLog(path).write("resume")
    assert [event["event"] for event in read_events(path)] == ["start", "resume"]


def test_a_line_that_is_still_being_written_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "start"}\n{"event": "st')
    assert [event["event"] for event in read_events(path)] == ["start"]


def test_a_number_that_json_lacks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        EventLog(tmp_path / "events.jsonl").write("step", loss=float("nan"))

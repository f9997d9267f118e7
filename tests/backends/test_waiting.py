"""Who is next: priorities before turns, turns before arrival."""

from collections import Counter
from dataclasses import dataclass

import pytest

from backends.causal_lm.scheduling import waiting
from backends.causal_lm.scheduling.waiting import WaitingLine


@dataclass(eq=False)
class Job:
    name: str
    user: str = ""
    priority: int = 0


def line_of(*jobs: Job) -> WaitingLine[Job]:
    line: WaitingLine[Job] = WaitingLine()
    for job in jobs:
        line.append(job)
    return line


def served(line: WaitingLine[Job], number: int, slots: int = 1) -> list[str]:
    """The names in the order in which they are let in, when each frees its row as the next one needs it."""
    names: list[str] = []
    running: list[Job] = []
    for _ in range(number):
        if len(running) == slots:
            running.pop(0)
        job = line.first(Counter(other.user for other in running))
        if job is None:
            break
        line.take(job)
        running.append(job)
        names.append(job.name)
    return names


def test_who_came_first_is_first() -> None:
    assert served(line_of(Job("a"), Job("b"), Job("c")), 9) == ["a", "b", "c"]
    assert line_of().first({}) is None


def test_a_lower_number_goes_first_and_equals_in_their_order() -> None:
    jobs = [
        Job("a", priority=1),
        Job("b", priority=-3),
        Job("c"),
        Job("d", priority=-3),
        Job("e", priority=1),
    ]
    assert served(line_of(*jobs), 9) == ["b", "d", "c", "a", "e"]


@pytest.mark.parametrize("slots", [1, 3])
def test_sixty_of_one_user_do_not_keep_another_waiting(slots: int) -> None:
    line = line_of(*(Job(f"a{i}", "a") for i in range(60)), *(Job(f"b{i}", "b") for i in range(3)))
    first = served(line, 8, slots)
    assert [name for name in first if name[0] == "b"] == ["b0", "b1", "b2"]
    assert [name for name in first if name[0] == "a"] == [f"a{i}" for i in range(5)]


def test_a_user_who_asks_one_at_a_time_does_not_go_before_everyone_each_time() -> None:
    line = line_of(*(Job(f"a{i}", "a") for i in range(6)))
    names = []
    for number in range(4):
        line.append(Job(f"b{number}", "b"))
        names += served(line, 2)
    assert names == ["a0", "b0", "a1", "b1", "a2", "b2", "a3", "b3"]


def test_who_holds_rows_comes_after_who_holds_none() -> None:
    line = line_of(Job("a", "a"), Job("b", "b"), Job("c", "c"))
    first = line.first({"a": 2, "b": 1})
    assert first is not None
    assert first.name == "c"


def test_a_priority_counts_before_a_turn() -> None:
    line = line_of(Job("a0", "a", -1), Job("a1", "a", -1), Job("b", "b"))
    assert served(line, 3) == ["a0", "a1", "b"]


def test_users_who_have_long_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "_REMEMBERED", 8)
    line: WaitingLine[Job] = WaitingLine()
    for number in range(50):
        line.append(Job(str(number), f"user {number}"))
        served(line, 1)
    assert len(line._turns) == 8

"""Whose turn it is, in a running engine: priorities, users, timeouts, room for states."""

import time
from pathlib import Path

import pytest

from backends.causal_lm.requests.request import RequestError
from tests.backends.conftest import Harness, RecordingSink, ask, make_request

PROMPT = [5, 6, 7]


def ends(harness: Harness, directory: Path, asked: list[dict[str, object]]) -> list[int]:
    """The order in which requests end that wait for one slot together."""
    engine, order = harness.start(directory, slots=1), list[int]()

    class Noting(RecordingSink):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number = number

        def _end(self) -> None:
            order.append(self.number)
            super()._end()

    with harness.standing_still():
        sinks = [Noting(number) for number in range(len(asked))]
        for values, sink in zip(asked, sinks, strict=True):
            engine.submit(make_request(engine, PROMPT, max_tokens=3, min_tokens=3, **values), sink)
    for sink in sinks:
        sink.wait()
    return order


def test_sixty_requests_of_one_user_do_not_keep_another_waiting(harness: Harness, directory: Path) -> None:
    order = ends(harness, directory, [{"user": "a"}] * 60 + [{"user": "b"}] * 2)
    assert max(order.index(60), order.index(61)) < 6


def test_a_lower_priority_number_is_served_first(harness: Harness, directory: Path) -> None:
    order = ends(harness, directory, [{"priority": number} for number in (0, 3, 1, -2)])
    assert order[-3:] == [0, 2, 1] or order == [0, 3, 2, 1]  # the first may run before the others come


def test_who_has_waited_too_long_ends_with_timeout(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, slots=1)
    with harness.standing_still():
        runs = ask(engine, PROMPT, max_tokens=60, min_tokens=60, timeout=60_000)
        waits = ask(engine, PROMPT, timeout=1)
        time.sleep(0.01)
    failure = waits.wait().failure
    assert failure is not None
    assert failure[0] == "timeout"
    assert "it may wait 1 ms; try again later" in failure[1]
    assert runs.wait().reason == "length"
    assert harness.count("requests_failed_total") == 1


def test_sequences_wait_for_room_for_their_states(
    harness: Harness, model_directories: dict[str, Path]
) -> None:
    engine = harness.start(model_directories["attention"], state_bytes=2 * 2 * 2 * 16 * 4 * 40 + 1)
    with harness.standing_still():
        sinks = [ask(engine, PROMPT, max_tokens=17, min_tokens=17) for _ in range(6)]
    assert [sink.wait().reason for sink in sinks] == ["length"] * 6
    assert max(size for kind, size in harness.runner.calls if kind == "decode") == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"priority": 2**31},
            r"^invalid: priority: 2147483648 was given, allowed is -2147483648 to",
        ),
        ({"timeout": -1}, r"^invalid: timeout: -1 was given, allowed is 0 to"),
        ({"user": "u" * 257}, r"^invalid: user: it has 257 characters, allowed are up to 256"),
    ],
)
def test_what_is_out_of_range_is_refused(
    harness: Harness, directory: Path, values: dict[str, object], message: str
) -> None:
    engine = harness.start(directory)
    with pytest.raises(RequestError, match=message):
        ask(engine, PROMPT, **values)

"""Cancelled requests: wherever they are, at any moment, without harm to others."""

import random
import threading
from pathlib import Path

import pytest

from backends.causal_lm.requests.request import Output
from tests.backends.conftest import Harness, RecordingSink, ask, make_request, racing_clock

PROMPT = "the cat sat on the mat"


def test_a_cancelled_sequence_leaves_before_the_next_step(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, clock=racing_clock)
    decodes: list[int] = []

    def at_tenth(output: Output) -> None:
        if output.num_output_tokens >= 10 and not decodes:
            engine.cancel("mine")
            decodes.append(len(harness.runner.calls))

    sink = RecordingSink(at_tenth)
    with harness.standing_still():
        engine.submit(make_request(engine, PROMPT, "mine", stream=True, min_tokens=70), sink)
        stays = ask(engine, PROMPT, max_tokens=70, min_tokens=70)
    assert sink.wait().reason == "cancelled"
    assert stays.wait().reason == "length"
    after = [size for kind, size in harness.runner.calls[decodes[0] :] if kind == "decode"]
    assert set(after) == {1}
    assert harness.count("requests_cancelled_total") == 1


@pytest.mark.parametrize("where", ["running", "reading", "waiting"])
@pytest.mark.parametrize("how", ["by id", "by sink"])
def test_a_request_is_cancelled_wherever_it_is(
    harness: Harness, model_directories: dict[str, Path], where: str, how: str
) -> None:
    engine = harness.start(model_directories["both"], slots=1, prefill_tokens=4, interleave_tokens=4)
    held = threading.Semaphore(0)
    stop_at = {"running": "decode", "reading": "prefill", "waiting": "prefill"}[where]
    harness.runner.fail = lambda kind, number: (
        kind == stop_at and number == 2 and not held.acquire(timeout=60)
    )
    first = ask(engine, [5] * 30, "a", max_tokens=20, min_tokens=20)
    second = ask(engine, [6] * 3, "b", max_tokens=20, min_tokens=20)
    target, name = (second, "b") if where == "waiting" else (first, "a")
    if how == "by id":
        assert engine.cancel(name)
    else:
        target.cancelled = True
    held.release()
    assert target.wait().reason == "cancelled"
    other = first if where == "waiting" else second
    assert (other.wait().reason, len(other.token_ids)) == ("length", 20)


def test_a_cancel_that_overtakes_its_request_still_hits_it(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    assert not engine.cancel("early")
    assert ask(engine, PROMPT, "early").wait().reason == "cancelled"
    assert ask(engine, PROMPT, "early", max_tokens=3, min_tokens=3).wait().reason == "length"
    assert not engine.cancel("")
    assert ask(engine, PROMPT, "", max_tokens=3, min_tokens=3).wait().reason == "length"


def test_two_hundred_random_cancels_leave_nothing_and_the_slots_serve_again(
    harness: Harness, directory: Path
) -> None:
    engine = harness.start(directory, clock=racing_clock, slots=8, queue_size=200)
    rng = random.Random(2)
    expected = ask(engine, PROMPT, max_tokens=20, temperature=1.0, seed=8).wait().text

    def cancelling(name: str, after: int) -> RecordingSink:
        def on_send(output: Output) -> None:
            if output.num_output_tokens >= after:
                engine.cancel(name)

        return RecordingSink(on_send)

    sinks = [cancelling(str(i), rng.randint(1, 12)) for i in range(200)]
    for i, sink in enumerate(sinks):
        if i % 5 == 0:
            sink.cancelled = True
        values = {"stream": True, "min_tokens": 70, "temperature": 1.0, "seed": i}
        request = make_request(engine, PROMPT[: rng.randint(1, 22)], str(i), **values)
        engine.submit(request, sink)
        if i % 7 == 0:
            engine.cancel(str(rng.randint(0, i)))
    reasons = [sink.wait().reason for sink in sinks]
    assert reasons.count("cancelled") == harness.count("requests_cancelled_total") > 150
    assert {sink.ends for sink in sinks} == {1}
    again = [ask(engine, PROMPT, max_tokens=20, temperature=1.0, seed=8) for _ in range(16)]
    assert {sink.wait().text for sink in again} == {expected}
    engine.close()
    assert (harness.count("num_requests_running"), harness.count("num_requests_waiting")) == (0, 0)

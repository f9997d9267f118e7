"""What goes wrong in the engine: whom it ends, whom it leaves alone, and when the engine gives up."""

import random
import threading
from pathlib import Path

import numpy as np
import pytest

from backends.causal_lm.requests.request import Output
from tests.backends.conftest import Harness, RecordingSink, ask, make_request

PROMPT = "the cat sat on the mat"


def test_ten_times_the_queue_is_answered_or_refused(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, slots=4, queue_size=6)
    with harness.standing_still():
        sinks = [ask(engine, PROMPT, max_tokens=5, min_tokens=5) for _ in range(60)]
        refused = [sink for sink in sinks if sink.failure]
    answered = [sink.wait() for sink in sinks if not sink.failure]
    assert (len(refused), len(answered)) == (50, 10)
    assert {sink.failure[0] for sink in refused if sink.failure} == {"overloaded"}
    assert all("requests wait already" in sink.failure[1] for sink in refused if sink.failure)
    assert {sink.reason for sink in answered} == {"length"}
    assert ask(engine, PROMPT, max_tokens=5).wait().failure is None


def test_a_failed_step_ends_its_sequences_and_the_engine_goes_on(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    expected = ask(engine, PROMPT, max_tokens=12).wait().token_ids
    for kind in ("prefill", "decode"):
        harness.runner.fail = lambda called, number, kind=kind: called == kind
        failed = ask(engine, PROMPT, max_tokens=12).wait()
        assert failed.failure == ("internal", f"internal: engine: {kind} broke; send the request again")
        harness.runner.fail = lambda called, number: False
        assert ask(engine, PROMPT, max_tokens=12).wait().token_ids == expected
    assert engine.healthy
    assert harness.count("requests_failed_total") == 2


def test_a_failed_prompt_leaves_the_running_ones_alone(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    expected = ask(engine, PROMPT, max_tokens=60, min_tokens=60).wait().token_ids
    harness.runner.calls.clear()
    harness.runner.fail = lambda kind, number: kind == "prefill" and number == 2
    with harness.standing_still():
        runs, fails = (ask(engine, PROMPT, max_tokens=60, min_tokens=60) for _ in range(2))
    assert fails.wait().failure is not None
    assert runs.wait().token_ids == expected


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_memory_that_is_not_to_be_had_ends_the_step_that_asked_for_it(
    harness: Harness, directory: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    engine = harness.start(directory)
    expected = ask(engine, PROMPT, max_tokens=12).wait().token_ids

    def greedy(*_: object) -> None:
        np.empty(2**56)

    with monkeypatch.context() as patch:
        patch.setattr(harness.runner, kind, greedy)
        failed = ask(engine, PROMPT, min_tokens=2).wait().failure
    assert failed is not None
    assert failed[0] == "internal"
    assert "Unable to allocate" in failed[1]
    assert ask(engine, PROMPT, max_tokens=12).wait().token_ids == expected
    assert engine.healthy


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_three_failed_steps_in_a_row_end_the_engine(harness: Harness, directory: Path, kind: str) -> None:
    engine = harness.start(directory)
    harness.runner.fail = lambda called, number: called == kind
    sinks = [ask(engine, PROMPT, min_tokens=2).wait() for _ in range(3)]
    assert {sink.failure[0] for sink in sinks if sink.failure} == {"internal"}
    late = ask(engine, PROMPT).wait()
    assert late.failure == (
        "unavailable",
        f"unavailable: engine: 3 {kind} steps failed in a row; reload the model",
    )
    assert not engine.healthy


@pytest.mark.parametrize("kind", ["prefill", "decode"])
def test_failures_with_a_success_between_do_not_end_the_engine(
    harness: Harness, directory: Path, kind: str
) -> None:
    engine = harness.start(directory)
    for _ in range(5):
        harness.runner.fail = lambda called, number: called == kind
        assert ask(engine, PROMPT, min_tokens=2).wait().failure is not None
        harness.runner.fail = lambda called, number: False
        assert ask(engine, PROMPT, max_tokens=3, min_tokens=3).wait().reason == "length"
    assert engine.healthy


def test_a_dead_scheduler_fails_what_is_under_way_and_is_not_healthy(
    harness: Harness, directory: Path
) -> None:
    engine = harness.start(directory, slots=4)
    harness.runner.fail = lambda kind, number: kind == "move"
    with harness.standing_still():
        sinks = [ask(engine, PROMPT, min_tokens=5 + 20 * i, max_tokens=5 + 20 * i) for i in range(5)]
    assert sinks[0].wait().reason == "length"
    for sink in sinks[1:]:
        code, message = sink.wait().failure or ("", "")
        assert code == "unavailable"
        assert "its scheduler died (RuntimeError('move broke'))" in message
    assert {sink.ends for sink in sinks} == {1}
    assert not engine.healthy
    engine.close()
    assert not engine.healthy


def test_logits_that_are_not_numbers_fail_their_request_alone(
    harness: Harness, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = harness.start(directory)
    decode = harness.runner.decode

    def poisoned(*arguments: np.ndarray) -> np.ndarray:
        logits = decode(*arguments)
        logits[1:] = np.nan
        return logits

    expected = ask(engine, PROMPT, max_tokens=9).wait().token_ids
    monkeypatch.setattr(harness.runner, "decode", poisoned)
    with harness.standing_still():
        first, second = (ask(engine, PROMPT, max_tokens=9) for _ in range(2))
    assert first.wait().token_ids == expected
    assert second.wait().failure == (
        "internal",
        "internal: engine: the graph's largest logit is nan; send the request again",
    )


class BrokenSink(RecordingSink):
    """Raises in one of its methods."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self._where = where

    def send(self, output: Output, final: bool) -> None:
        super().send(output, final)
        if self._where == ("last" if final else "send"):
            raise OSError("the client's pipe is gone")

    def is_cancelled(self) -> bool:
        if self._where == "is_cancelled" and self.outputs:
            raise OSError("the client's pipe is gone")
        return False

    def fail(self, code: str, message: str) -> None:
        super().fail(code, message)
        raise OSError("the client's pipe is gone")


@pytest.mark.parametrize("where", ["send", "last", "is_cancelled"])
def test_a_sink_that_breaks_harms_its_own_request_only(harness: Harness, directory: Path, where: str) -> None:
    engine, broken = harness.start(directory), BrokenSink(where)
    expected = ask(engine, PROMPT, max_tokens=40, min_tokens=40).wait().token_ids
    other = ask(engine, PROMPT, max_tokens=40, min_tokens=40)
    engine.submit(make_request(engine, PROMPT, max_tokens=30, min_tokens=30, stream=True), broken)
    assert broken.wait().ends == 1
    assert other.wait().token_ids == expected
    assert engine.healthy


def test_closing_fails_what_is_under_way_and_refuses_what_comes(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, slots=2)
    streamed = threading.Event()

    def on_send(output: Output) -> None:
        if not streamed.is_set():
            harness.runner.gate.clear()
            streamed.set()

    streaming = RecordingSink(on_send)
    engine.submit(make_request(engine, PROMPT, stream=True, min_tokens=70), streaming)
    others = [ask(engine, PROMPT, min_tokens=70) for _ in range(5)]
    assert streamed.wait(60)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not (late := ask(engine, PROMPT)).failure:
        others.append(late)
    harness.runner.gate.set()
    closing.join()
    engine.close()
    for sink in (streaming, *others, late):
        assert sink.ends == 1
        assert sink.failure == (
            "unavailable",
            "unavailable: engine: it is being stopped; send the request again",
        )
    assert engine.healthy
    assert harness.count("num_requests_running") == 0


def test_submits_cancels_and_a_close_from_many_threads_end_every_request_once(
    harness: Harness, model_directories: dict[str, Path]
) -> None:
    engine = harness.start(model_directories["both"], slots=4, queue_size=30)
    sinks: list[RecordingSink] = []

    def client(number: int) -> None:
        rng = random.Random(number)
        for i in range(25):
            sinks.append(
                ask(engine, PROMPT[: rng.randint(1, 20)], f"{number}/{i}", max_tokens=rng.randint(1, 9))
            )
            if rng.random() < 0.4:
                engine.cancel(f"{number}/{rng.randint(0, i)}")

    threads = [threading.Thread(target=client, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    while len(sinks) < 100:
        sinks[-1].wait() if sinks else None
    engine.close()
    for thread in threads:
        thread.join()
    assert len(sinks) == 150
    assert {sink.wait().ends for sink in sinks} == {1}

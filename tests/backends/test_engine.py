"""The engine over real graphs: the same text in any company, one end per request, rows that serve again."""

import random
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.manifest import LoadError, read_manifest
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.pacing import message_interval
from backends.causal_lm.request import Output
from backends.causal_lm.settings import EngineSettings
from tests.backends.conftest import TOKENIZER, Harness, RecordingSink, ask, make_request
from tests.backends.tiny_graph import EOS, MAX_LENGTH, write_model

PROMPT = "the cat sat on the mat"


def plain_greedy(directory: Path, prompt: list[int], number: int) -> list[int]:
    """The reference: the whole text through a fresh session for every token, no state kept."""
    session = ort.InferenceSession(directory / "model.onnx")
    states = read_manifest(directory / "manifest.json").states
    feed = {state.past: np.zeros((1, *state.shape), state.dtype) for state in states}
    ids = list(prompt)
    for _ in range(number):
        positions = np.arange(len(ids))[None]
        tokens = {"input_ids": np.array([ids]), "positions": positions, "lengths": np.array([len(ids)])}
        tokens["logits_at"] = np.array([[len(ids) - 1]])
        ids.append(int(session.run(["logits"], feed | tokens)[0][0].argmax()))
    return ids[len(prompt) :]


def test_greedy_tokens_are_those_of_the_whole_text_run_anew(harness: Harness, directory: Path) -> None:
    # Chosen as the largest of logits that differ by rounding only: no near tie occurs in these.
    ids = TOKENIZER.encode(PROMPT).ids
    sink = ask(harness.start(directory), ids, max_tokens=20).wait()
    assert sink.token_ids == plain_greedy(directory, ids, 20)
    assert (sink.reason, len(sink.outputs)) == ("length", 1)


def test_a_loaded_engine_answers_and_reports(directory: Path) -> None:
    metrics = MemoryMetrics()
    engine = load_engine(directory, EngineSettings(threads=1), metrics)
    output = ask(engine, PROMPT, max_tokens=5).wait().outputs[0]
    engine.close()
    assert output.num_input_tokens == len(TOKENIZER.encode(PROMPT).ids)
    assert (output.num_output_tokens, len(output.token_ids)) == (5, 5)
    assert output.timings is not None
    assert min(output.timings.queue_ns, output.timings.prefill_ns, output.timings.decode_ns) >= 0
    assert metrics.values["generation_tokens_total"] == 5
    assert metrics.values["prompt_tokens_total"] == output.num_input_tokens
    assert metrics.observations["time_to_first_token_seconds"][0] == 1


def test_sixteen_streams_with_the_same_seeds_say_the_same_alone_and_in_a_crowd(
    harness: Harness, directory: Path
) -> None:
    rng = random.Random(1)
    asked: list[dict[str, object]] = [
        {
            "max_tokens": (number := rng.randint(20, 60)),
            "min_tokens": number,
            "temperature": rng.choice([0.0, 0.7, 1.3]),
            "top_p": rng.choice([1.0, 0.9]),
            "repetition_penalty": rng.choice([1.0, 1.2]),
            "seed": seed,
            "stream": True,
        }
        for seed in range(16)
    ]
    engine = harness.start(directory, prefill_tokens=8, interleave_tokens=5)
    prompts = [PROMPT[: rng.randint(1, len(PROMPT))] for _ in asked]
    alone = [ask(engine, prompt, **values).wait() for prompt, values in zip(prompts, asked, strict=True)]
    for _ in range(2):
        rng.shuffle(order := list(range(16)))
        with harness.standing_still():
            crowd = {i: ask(engine, prompts[i], **asked[i]) for i in order}
        for i, sink in crowd.items():
            assert (sink.wait().text, sink.token_ids) == (alone[i].text, alone[i].token_ids)
    assert max(size for kind, size in harness.runner.calls if kind == "decode") > 7


def test_a_stream_brings_the_same_as_one_response(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    values = {
        "max_tokens": 30,
        "min_tokens": 30,
        "temperature": 1.0,
        "seed": 4,
        "return_log_probs": True,
        "num_log_probs": 3,
    }
    whole = ask(engine, PROMPT, **values).wait().outputs[0]
    sink = ask(engine, PROMPT, stream=True, **values).wait()
    assert (sink.text, tuple(sink.token_ids)) == (whole.text, whole.token_ids)
    assert whole.text == TOKENIZER.decode(list(whole.token_ids))
    assert len(sink.outputs) > 5
    assert [output.finish_reason for output in sink.outputs[:-1]] == [""] * (len(sink.outputs) - 1)
    assert tuple(x for output in sink.outputs for x in output.log_probs) == whole.log_probs
    assert sum(whole.log_probs) == pytest.approx(whole.cum_log_prob)
    assert [len(alternatives) for alternatives in whole.top_log_probs] == [3] * 30
    assert sink.outputs[-1].num_output_tokens == 30


def test_the_prompt_is_put_before_the_output_when_asked(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    bare = ask(engine, PROMPT, max_tokens=4).wait().text
    assert ask(engine, PROMPT, max_tokens=4, exclude_input_in_output=False).wait().text == PROMPT + bare
    echo = ask(engine, PROMPT, max_tokens=4, exclude_input_in_output=False, prompt="<P>", stream=True).wait()
    assert echo.text == "<P>" + bare


@pytest.mark.parametrize("length", [1, 3, 4])
def test_a_stop_string_ends_before_itself_and_is_named(
    harness: Harness, directory: Path, length: int
) -> None:
    engine = harness.start(directory)
    text = ask(engine, PROMPT, max_tokens=30).wait().text
    stop = text[10 : 10 + length]
    for stream in (False, True):
        sink = ask(engine, PROMPT, max_tokens=30, stop_words=["never", stop], stream=stream).wait()
        assert sink.text == text[: text.index(stop)]
        assert (sink.reason, sink.outputs[-1].stop_reason) == ("stop", stop)
        assert sink.outputs[-1].num_output_tokens < 30


def test_end_of_sequence_stops_and_is_not_shown(harness: Harness, directory: Path) -> None:
    sink = ask(
        harness.start(directory), PROMPT, min_tokens=3, max_tokens=9, logit_bias=f'{{"{EOS}": 100}}'
    ).wait()
    assert (sink.reason, len(sink.token_ids), EOS in sink.token_ids) == ("stop", 3, False)


def test_a_full_context_ends_with_length(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, prefill_tokens=40)
    for prompt_length in (MAX_LENGTH - 1, MAX_LENGTH - 7):
        sink = ask(engine, [5] * prompt_length, max_tokens=50, logit_bias=f'{{"{EOS}": -100}}').wait()
        assert (sink.reason, len(sink.token_ids)) == ("length", MAX_LENGTH - prompt_length)


def test_a_long_prompt_lets_the_others_step_between_its_chunks(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, prefill_tokens=32, interleave_tokens=4)
    with harness.standing_still():
        short = ask(engine, [5, 6], max_tokens=60)
        long = ask(engine, [7] * 80, max_tokens=2)
    short.wait()
    long.wait()
    kinds = [kind for kind, _ in harness.runner.calls]
    chunks = [i for i, (kind, size) in enumerate(harness.runner.calls) if kind == "prefill"]
    assert len(chunks) == 1 + 20
    assert all(kinds[i + 1] == "decode" for i in chunks)
    assert long.token_ids == ask(harness.start(directory), [7] * 80, max_tokens=2).wait().token_ids


def test_a_cancelled_sequence_leaves_before_the_next_step(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
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
    engine, rng = harness.start(directory, slots=8, queue_size=200), random.Random(2)
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
    engine = harness.start(directory, slots=2)
    harness.runner.fail = lambda kind, number: kind == "move"
    with harness.standing_still():
        sinks = [ask(engine, PROMPT, min_tokens=5 + 20 * i, max_tokens=5 + 20 * i) for i in range(4)]
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


@pytest.mark.parametrize(("running", "seconds"), [(1, 0.0), (4, 0.0), (8, 0.016), (16, 0.048), (64, 0.05)])
def test_messages_are_spaced_with_the_load_to_fifty_milliseconds(running: int, seconds: float) -> None:
    assert message_interval(running) == pytest.approx(seconds)


class SteppingClock:
    """A clock that moves a tenth of a millisecond per reading: what a run takes is the same everywhere."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0001
        return self.now


@pytest.mark.parametrize(("streams", "least"), [(2, 15), (16, 1)])
def test_with_many_streams_messages_are_fewer_and_fuller(
    harness: Harness, model_directories: dict[str, Path], streams: int, least: int
) -> None:
    harness.start(model_directories["both"])
    settings, manifest = EngineSettings(threads=1), read_manifest(model_directories["both"] / "manifest.json")
    engine = Engine(
        harness.runner,
        TOKENIZER,
        manifest=manifest,
        settings=settings,
        metrics=MemoryMetrics(),
        clock=SteppingClock(),
    )
    harness.engines.append(engine)
    sinks = [ask(engine, PROMPT, max_tokens=25, min_tokens=25, stream=True) for _ in range(streams)]
    messages = [len(sink.wait().outputs) for sink in sinks]
    assert min(messages) >= least
    assert {sink.text for sink in sinks} == {sinks[0].text}
    assert sinks[0].outputs[0].num_output_tokens <= 4
    if streams == 16:
        assert sum(messages) < 16 * 9


def test_a_directory_without_a_readable_tokenizer_is_a_load_error(tmp_path: Path) -> None:
    write_model(tmp_path, ("attention",))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match=r"tokenizer\.json can't be read .*export 'tiny' again"):
        load_engine(tmp_path, EngineSettings(threads=1), MemoryMetrics())

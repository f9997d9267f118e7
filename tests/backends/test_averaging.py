"""One answer to several prompts: the mean of what the single passes predict, in rows that stay together."""

import random
import threading
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from backends.causal_lm.engine import Engine
from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.requests.request import Output
from backends.causal_lm.sequences.averaging import averaged
from tests.backends.conftest import TOKENIZER, Harness, RecordingSink, ask, make_request, racing_clock
from tests.backends.tiny_graph import EOS, MAX_LENGTH, write_model

BLOCKS = [TOKENIZER.encode(text).ids for text in ("the cat sat. ", "the dog ran to the mat. ", "they ate. ")]
QUESTION = TOKENIZER.encode("and then").ids
NO_END = f'{{"{EOS}": -100}}'


def prompt_of(order: tuple[int, ...]) -> list[int]:
    return [*(token for block in order for token in BLOCKS[block]), *QUESTION]


ORDERS = [prompt_of(order) for order in ((0, 1, 2), (2, 0, 1), (1, 2, 0), (2, 1, 0))]
# Prompts of unlike lengths, as tokenizing may leave them.
UNLIKE = [ORDERS[0], ORDERS[1][3:], ORDERS[2][1:]]


def ask_all(
    engine: Engine, prompts: list[list[int]], request_id: str = "", /, **values: object
) -> RecordingSink:
    """Ask for one answer to all of the prompts."""
    ids = [token for prompt in prompts for token in prompt]
    return ask(engine, ids, request_id, prompt_lengths=[len(prompt) for prompt in prompts], **values)


def softmax(logits: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = np.exp(logits.astype(np.float64) - logits.max(axis=-1, keepdims=True))
    mean: NDArray[np.float64] = wide / wide.sum(axis=-1, keepdims=True)
    return mean


class SinglePass:
    """The reference: a fresh session over a whole text, no state kept."""

    def __init__(self, directory: Path) -> None:
        self._session = ort.InferenceSession(directory / "model.onnx")
        states = read_manifest(directory / "manifest.json").states
        self._feed = {state.past: np.zeros((1, *state.shape), state.dtype) for state in states}

    def probabilities(self, ids: list[int]) -> NDArray[np.float64]:
        """Of the next token, (V,)."""
        positions = np.arange(len(ids))[None]
        tokens = {"input_ids": np.array([ids]), "positions": positions, "lengths": np.array([len(ids)])}
        tokens["logits_at"] = np.array([[len(ids) - 1]])
        return softmax(self._session.run(["logits"], self._feed | tokens)[0][0, 0])


def test_the_pooled_logits_are_those_of_the_mean_distribution() -> None:
    logits = np.random.default_rng(0).normal(0, 8, (5, 4000)).astype(np.float32)
    logits[3] += 40  # softmax does not see where a row lies
    rows = [4, 0, 3]
    # float32 exponentials; a probability is at most one
    np.testing.assert_allclose(
        softmax(averaged(logits, rows)), softmax(logits[rows]).mean(axis=0), rtol=0, atol=1e-6
    )


def test_one_row_is_itself_and_equal_rows_are_nearly_so() -> None:
    logits = np.random.default_rng(1).normal(3, 8, (2, 4000)).astype(np.float32)
    assert np.shares_memory(averaged(logits, [1]), logits)
    assert np.array_equal(averaged(logits, [1]), logits[1])
    np.testing.assert_allclose(averaged(logits, [1, 1, 1]), logits[1], rtol=0, atol=2e-5)


def test_a_token_that_every_row_thinks_impossible_stays_a_number() -> None:
    logits = np.array([[0, -300, 5], [1, -400, 5]], np.float32)
    assert np.isfinite(averaged(logits, [0, 1])).all()
    assert averaged(logits, [0, 1])[1] == pytest.approx(-300, abs=5)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_row_that_is_no_number_makes_none(bad: float) -> None:
    logits = np.zeros((3, 9), np.float32)
    logits[1, 4] = bad
    pooled = averaged(logits, [0, 1])
    assert not np.isfinite(pooled[pooled.argmax()])
    assert np.isfinite(averaged(logits, [0, 2])).all()


@pytest.mark.parametrize("prompts", [ORDERS[:2], ORDERS, UNLIKE])
def test_every_token_has_the_mean_of_the_single_passes_probabilities(
    harness: Harness, directory: Path, prompts: list[list[int]]
) -> None:
    engine, reference = harness.start(directory, interleave_tokens=8), SinglePass(directory)
    with harness.standing_still():
        ask(engine, "the cat", max_tokens=8)
        values = {"temperature": 1.0, "seed": 3, "logit_bias": NO_END, "num_log_probs": 20}
        sink = ask_all(engine, prompts, max_tokens=12, return_log_probs=True, **values)
    (output,) = sink.wait().outputs
    answer: list[int] = []
    for token, log_prob, alternatives in zip(
        output.token_ids, output.log_probs, output.top_log_probs, strict=True
    ):
        mean = np.mean([reference.probabilities([*prompt, *answer]) for prompt in prompts], axis=0)
        assert np.exp(log_prob) == pytest.approx(mean[token], abs=1e-6)
        told = np.exp(list(alternatives.values()))
        np.testing.assert_allclose(told, mean[list(alternatives)], rtol=0, atol=1e-6)
        np.testing.assert_allclose(told, np.sort(mean)[:-21:-1], rtol=0, atol=1e-6)
        answer.append(token)
    assert len(answer) == 12
    assert output.num_input_tokens == sum(map(len, prompts))


def test_orders_matter_to_a_model_with_positions_and_not_to_one_without(
    harness: Harness, model_directories: dict[str, Path], tmp_path: Path
) -> None:
    values = {"max_tokens": 20, "logit_bias": NO_END}
    ordered = harness.start(model_directories["attention"])
    assert len({tuple(ask(ordered, prompt, **values).wait().token_ids) for prompt in ORDERS}) > 1
    free = harness.start(write_model(tmp_path, ("attention without positions",)))
    single = {tuple(ask(free, prompt, **values).wait().token_ids) for prompt in ORDERS}
    assert len(single) == 1
    assert tuple(ask_all(free, ORDERS, **values).wait().token_ids) in single


def test_one_prompt_is_the_plain_request_to_the_bit(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    values = {"max_tokens": 20, "temperature": 1.0, "seed": 1, "return_log_probs": True, "logit_bias": NO_END}
    plain, one = ask(engine, ORDERS[0], **values).wait(), ask_all(engine, ORDERS[:1], **values).wait()
    assert (one.token_ids, one.outputs[0].log_probs) == (plain.token_ids, plain.outputs[0].log_probs)


def test_equal_prompts_answer_like_one_whatever_the_sampling(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    values = {"max_tokens": 25, "repetition_penalty": 1.3, "presence_penalty": 0.5, "logit_bias": NO_END}
    plain = ask(engine, ORDERS[0], **values).wait()
    assert ask_all(engine, [ORDERS[0]] * 3, **values).wait().token_ids == plain.token_ids


def test_the_same_seed_says_the_same_alone_and_in_a_crowd(harness: Harness, directory: Path) -> None:
    engine, rng = harness.start(directory, slots=7, prefill_tokens=8, interleave_tokens=5), random.Random(5)
    asked = [
        (rng.sample(ORDERS, rng.randint(1, 4)), {"max_tokens": rng.randint(5, 30), "seed": seed})
        for seed in range(12)
    ]
    sampling = {"temperature": 1.0, "logit_bias": NO_END, "stream": True}
    alone = [ask_all(engine, prompts, **values, **sampling).wait().token_ids for prompts, values in asked]
    for _ in range(2):
        rng.shuffle(order := list(range(12)))
        with harness.standing_still():
            crowd = {i: ask_all(engine, asked[i][0], **asked[i][1], **sampling) for i in order}
        assert [crowd[i].wait().token_ids for i in range(12)] == alone
    assert max(size for kind, size in harness.runner.calls if kind == "decode") > 4


def test_more_prompts_than_slots_are_refused_by_name_and_as_many_run(
    harness: Harness, directory: Path
) -> None:
    engine = harness.start(directory, slots=3, queue_size=8)
    assert ask_all(engine, ORDERS, max_tokens=2).wait().failure == (
        "invalid",
        "invalid: num_permutations: 4 were given, allowed are 1 to 3, as many as the engine has slots",
    )
    assert ask_all(engine, ORDERS[:3], max_tokens=2, min_tokens=2).wait().reason == "length"


@pytest.mark.parametrize("where", ["running", "reading the first", "reading the last", "waiting"])
def test_a_cancel_frees_every_row_wherever_the_request_is(
    harness: Harness, model_directories: dict[str, Path], where: str
) -> None:
    engine = harness.start(model_directories["both"], slots=4, prefill_tokens=64)
    plain = ask(engine, ORDERS[0], max_tokens=20, temperature=1.0, seed=8).wait().token_ids
    harness.runner.calls.clear()
    held = threading.Semaphore(0)
    kind, number = {
        "running": ("decode", 3),
        "reading the first": ("prefill", 2),
        "reading the last": ("prefill", 4),
        "waiting": ("prefill", 1),
    }[where]
    harness.runner.fail = lambda called, calls: (
        (called, calls) == (kind, number) and not held.acquire(timeout=60)
    )
    with harness.standing_still():
        beside = ask(engine, ORDERS[1], max_tokens=30, min_tokens=30, logit_bias=NO_END)
        three = ask_all(engine, ORDERS[:3], "three", max_tokens=40, min_tokens=40)
    assert engine.cancel("three")
    held.release()
    assert three.wait().reason == "cancelled"
    assert beside.wait().reason == "length"
    crowd = [ask(engine, ORDERS[0], max_tokens=20, temperature=1.0, seed=8) for _ in range(4)]
    assert [sink.wait().token_ids for sink in crowd] == [plain] * 4
    engine.close()
    assert harness.count("num_requests_running") == 0
    assert three.ends == 1


def test_a_failed_prompt_ends_its_request_and_no_other(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, prefill_tokens=64, interleave_tokens=64)
    expected = ask(engine, ORDERS[0], max_tokens=40, min_tokens=40).wait().token_ids
    harness.runner.calls.clear()
    harness.runner.fail = lambda kind, number: kind == "prefill" and number == 3
    with harness.standing_still():
        runs = ask(engine, ORDERS[0], max_tokens=40, min_tokens=40)
        fails = ask_all(engine, ORDERS, max_tokens=5)
    assert fails.wait().failure == ("internal", "internal: engine: prefill broke; send the request again")
    assert runs.wait().token_ids == expected


def test_random_cancels_among_requests_of_many_rows_leave_nothing(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, clock=racing_clock, slots=6, queue_size=400)
    rng = random.Random(4)
    expected = ask_all(engine, ORDERS, max_tokens=20, temperature=1.0, seed=8).wait().token_ids

    def cancelling(name: str, after: int) -> RecordingSink:
        def on_send(output: Output) -> None:
            if output.num_output_tokens >= after:
                engine.cancel(name)

        return RecordingSink(on_send)

    sinks = [cancelling(str(i), rng.randint(1, 9)) for i in range(80)]
    for i, sink in enumerate(sinks):
        prompts = rng.sample(ORDERS, rng.randint(1, 4))
        ids = [token for prompt in prompts for token in prompt]
        values = {"prompt_lengths": [len(prompt) for prompt in prompts], "stream": True, "min_tokens": 60}
        engine.submit(make_request(engine, ids, str(i), **values), sink)
        if i % 5 == 0:
            engine.cancel(str(rng.randint(0, i)))
    assert {sink.wait().ends for sink in sinks} == {1}
    assert {sink.reason for sink in sinks} == {"cancelled"}
    assert ask_all(engine, ORDERS, max_tokens=20, temperature=1.0, seed=8).wait().token_ids == expected
    engine.close()
    assert (harness.count("num_requests_running"), harness.count("num_requests_waiting")) == (0, 0)


def test_the_longest_prompt_decides_when_the_context_is_full(harness: Harness, directory: Path) -> None:
    prompts = [[5, 6], [5] * (MAX_LENGTH - 4), [7] * 9]
    sink = ask_all(harness.start(directory), prompts, max_tokens=50, logit_bias=NO_END).wait()
    assert (sink.reason, len(sink.token_ids)) == ("length", 4)


def test_the_first_prompt_is_echoed(harness: Harness, directory: Path) -> None:
    sink = ask_all(harness.start(directory), ORDERS[:2], max_tokens=1, exclude_input_in_output=False).wait()
    assert sink.text.startswith(TOKENIZER.decode(ORDERS[0]))

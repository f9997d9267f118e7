"""Drafts that are verified several tokens at a time: the text is what it would be without them."""

import random
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.causal_lm.requests.request import Output
from tests.backends.conftest import (
    FIGURES,
    MODELS,
    TOKENIZER,
    Harness,
    RecordingSink,
    ask,
    make_request,
    racing_clock,
)
from tests.backends.tiny_graph import EOS, VOCAB_SIZE, write_model

REPEATING = "the cat sat on the mat and the cat sat on the mat and the cat"
FEW_WORDS = '{"40": 15, "41": 15, "42": 14}'  # of which some will be guessed, and some not
DRAFTS = "spec_decode_num_drafts_total"
DRAFTED = "spec_decode_num_draft_tokens_total"
ACCEPTED = "spec_decode_num_accepted_tokens_total"


@pytest.fixture(params=["attention", "retention"])
def directory(request: pytest.FixtureRequest, model_directories: dict[str, Path]) -> Path:
    """A version directory, one per kind of state."""
    return model_directories[request.param]


def heard(sink: RecordingSink) -> dict[str, object]:
    """All that a client sees, but when it came."""
    last = sink.outputs[-1]
    return {
        "text": sink.text,
        "ids": sink.token_ids,
        "reason": (last.finish_reason, last.stop_reason),
        "numbers": (last.num_input_tokens, last.num_output_tokens),
        "log_probs": sum(len(output.log_probs) for output in sink.outputs),
    }


def requests(rng: random.Random, number: int) -> list[tuple[list[int], dict[str, object]]]:
    """Prompts of which half repeat themselves, and sampling of every kind."""
    found = []
    for seed in range(number):
        phrase = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(3, 9))]
        prompt = phrase * rng.randint(2, 4) if seed % 2 else phrase
        values: dict[str, object] = {
            "seed": seed,
            "max_tokens": rng.randint(1, 50),
            "temperature": rng.choice([0.0, 0.0, 0.5, 1.2]),
            "top_p": rng.choice([1.0, 0.8]),
            "repetition_penalty": rng.choice([1.0, 1.0, 1.3]),
            "frequency_penalty": rng.choice([0.0, 0.5]),
            "stream": rng.choice([False, True]),
            "return_log_probs": rng.choice([False, True]),
            "logit_bias": rng.choice(["{}", f'{{"{EOS}": 4}}', FEW_WORDS, FEW_WORDS]),
        }
        values["min_tokens"] = rng.randint(0, int(str(values["max_tokens"])))
        found.append((prompt, values))
    return found


def test_the_text_is_the_same_with_and_without_drafts(harness: Harness, directory: Path) -> None:
    asked = requests(random.Random(5), 60)
    plain = harness.start(directory)
    expected = [heard(ask(plain, prompt, **values).wait()) for prompt, values in asked]
    engine = harness.start(directory, speculative_tokens=6)
    assert [heard(ask(engine, prompt, **values).wait()) for prompt, values in asked] == expected
    assert harness.count(ACCEPTED) > 50
    assert harness.count(DRAFTED) > harness.count(ACCEPTED), "no draft was ever wrong"
    assert harness.count("generation_tokens_total") >= sum(len(one["ids"]) for one in expected)  # type: ignore[arg-type]


def test_several_streams_may_be_verified_row_by_row(harness: Harness, directory: Path) -> None:
    asked = requests(random.Random(6), 24)
    plain = harness.start(directory)
    expected = [heard(ask(plain, prompt, **values).wait())["ids"] for prompt, values in asked]
    engine = harness.start(directory, speculative_tokens=4, speculative_streams=5, slots=5)
    with harness.standing_still():
        sinks = [ask(engine, prompt, **values) for prompt, values in asked]
    assert [sink.wait().token_ids for sink in sinks] == expected
    assert harness.count(ACCEPTED) > 20


def test_log_probs_and_figures_are_those_of_each_verified_token(
    harness: Harness, tmp_path: Path, directory: Path
) -> None:
    telling = write_model(tmp_path, MODELS[directory.name], figures=FIGURES)
    values = {"max_tokens": 40, "min_tokens": 40, "return_log_probs": True, "num_log_probs": 2}
    values["logit_bias"] = FEW_WORDS
    (plain,) = ask(harness.start(telling), REPEATING, **values).wait().outputs
    (drafted,) = ask(harness.start(telling, speculative_tokens=5), REPEATING, **values).wait().outputs
    assert harness.count(ACCEPTED) > 10
    assert drafted.token_ids == plain.token_ids
    assert drafted.log_probs == plain.log_probs
    assert drafted.top_log_probs == plain.top_log_probs
    assert drafted.uncertainty == plain.uncertainty


@pytest.mark.parametrize("stop", ["text", "eos", "length"])
def test_an_end_within_a_draft_ends_there(harness: Harness, directory: Path, stop: str) -> None:
    plain = harness.start(directory)
    whole = ask(plain, REPEATING, max_tokens=30, min_tokens=30).wait()
    values: dict[str, object] = {"max_tokens": 30}
    if stop == "text":
        values["stop_words"] = [whole.text[20:23]]
    elif stop == "eos":
        values |= {"temperature": 0.7, "seed": 3, "logit_bias": f'{{"{EOS}": 7}}'}
    else:
        values["max_tokens"] = 17
    expected = heard(ask(plain, REPEATING, **values).wait())
    engine = harness.start(directory, speculative_tokens=8)
    assert heard(ask(engine, REPEATING, **values).wait()) == expected
    again = ask(engine, REPEATING, max_tokens=30, min_tokens=30).wait()
    assert again.token_ids == whole.token_ids, "the row was not fit for the next request"


def test_a_full_context_is_never_overrun(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, speculative_tokens=8, prefill_tokens=96)
    longest: list[int] = []
    verify = harness.runner.verify

    def watched(row: int, tokens: NDArray[np.int64], start: int) -> tuple[np.ndarray, np.ndarray]:
        longest.append(start + len(tokens))
        return verify(row, tokens, start)

    harness.runner.verify = watched  # type: ignore[method-assign]
    sink = ask(engine, [5, 6, 7] * 28, logit_bias=f'{{"{EOS}": -100}}').wait()
    assert (sink.reason, len(sink.token_ids)) == ("length", 96 - 84)
    assert max(longest) <= 96


def test_drafts_end_while_too_many_run(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, speculative_tokens=4, speculative_streams=1)
    with harness.standing_still():
        sinks = [ask(engine, REPEATING, max_tokens=20, min_tokens=20) for _ in range(2)]
    for sink in sinks:
        sink.wait()
    assert harness.count(DRAFTS) == 0


def test_several_prompts_for_one_answer_are_not_drafted(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, speculative_tokens=4, speculative_streams=9)
    ids = TOKENIZER.encode(REPEATING).ids
    sink = ask(engine, ids * 2, prompt_lengths=[len(ids)] * 2, max_tokens=20, min_tokens=20)
    assert len(sink.wait().token_ids) == 20
    assert harness.count(DRAFTS) == 0


def test_a_runner_that_cannot_verify_is_not_asked_to(
    harness: Harness, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(harness).start.__globals__["WatchedRunner"], "most_verified", 0)
    engine = harness.start(directory, speculative_tokens=4)
    assert ask(engine, REPEATING, max_tokens=20, min_tokens=20).wait().reason == "length"
    assert not [kind for kind, _ in harness.runner.calls if kind == "verify"]


def test_a_failed_verification_ends_its_sequence_and_three_the_engine(
    harness: Harness, directory: Path
) -> None:
    engine = harness.start(directory, speculative_tokens=4)
    harness.runner.fail = lambda kind, number: kind == "verify"
    for _ in range(3):
        failed = ask(engine, REPEATING, max_tokens=40, min_tokens=40).wait()
        assert failed.failure == ("internal", "internal: engine: verify broke; send the request again")
    assert ask(engine, REPEATING).wait().failure == (
        "unavailable",
        "unavailable: engine: 3 verify steps failed in a row; reload the model",
    )
    assert not engine.healthy


def test_logits_that_are_not_numbers_fail_a_drafted_request_alone(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, speculative_tokens=4)
    values = {"max_tokens": 30, "min_tokens": 30, "logit_bias": FEW_WORDS}
    expected = ask(engine, REPEATING, **values).wait().token_ids
    verify = harness.runner.verify

    def poisoned(row: int, tokens: NDArray[np.int64], start: int) -> tuple[np.ndarray, np.ndarray]:
        logits, figures = verify(row, tokens, start)
        logits[0] = np.nan
        return logits, figures

    harness.runner.verify = poisoned  # type: ignore[method-assign]
    assert "largest logit is nan" in (ask(engine, REPEATING, **values).wait().failure or ("", ""))[1]
    harness.runner.verify = verify  # type: ignore[method-assign]
    assert ask(engine, REPEATING, **values).wait().token_ids == expected
    assert engine.healthy


def test_a_cancel_between_verifications_frees_the_row(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, clock=racing_clock, speculative_tokens=4, slots=1)
    cancelled = threading.Event()

    def on_send(output: Output) -> None:
        if output.num_output_tokens >= 10 and not cancelled.is_set():
            engine.cancel("mine")
            cancelled.set()

    sink = RecordingSink(on_send)
    engine.submit(make_request(engine, REPEATING, "mine", stream=True, min_tokens=50), sink)
    assert sink.wait().reason == "cancelled"
    assert ask(engine, REPEATING, max_tokens=5, min_tokens=5).wait().reason == "length"

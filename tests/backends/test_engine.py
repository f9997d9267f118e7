"""The engine over real graphs: the same text in any company, one end per request, rows that serve again."""

import random
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from backends.causal_lm.loading import load_engine
from backends.causal_lm.manifest import LoadError, read_manifest
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.settings import EngineSettings
from tests.backends.conftest import TOKENIZER, Harness, ask, racing_clock
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
    engine = harness.start(directory, clock=racing_clock)
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


def test_a_directory_without_a_readable_tokenizer_is_a_load_error(tmp_path: Path) -> None:
    write_model(tmp_path, ("attention",))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(LoadError, match=r"tokenizer\.json can't be read .*export 'tiny' again"):
        load_engine(tmp_path, EngineSettings(threads=1), MemoryMetrics())

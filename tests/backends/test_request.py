"""A request is checked against the tensor contract, value by value."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from backends.causal_lm.manifest import Manifest, read_manifest
from backends.causal_lm.requests.request import GenerationRequest, RequestError
from tests.backends.tiny_graph import MAX_LENGTH, VOCAB_SIZE

NUMBERS = {
    "temperature": (-0.1, 2.1, "0 to 2"),
    "top_p": (0.0, 1.01, "above 0 to 1"),
    "min_p": (-0.01, 1.01, "0 to 1"),
    "repetition_penalty": (0.0, 2.01, "above 0 to 2"),
    "presence_penalty": (-2.1, 2.1, "-2 to 2"),
    "frequency_penalty": (-2.1, 2.1, "-2 to 2"),
}


@pytest.fixture(scope="module")
def manifest(model_directories: dict[str, Path]) -> Manifest:
    return read_manifest(model_directories["both"] / "manifest.json")


def build(manifest: Manifest, **values: object) -> GenerationRequest:
    return GenerationRequest.from_values("id", {"input_ids": np.array([5, 6], np.int32), **values}, manifest)


def test_everything_but_the_ids_has_a_default(manifest: Manifest) -> None:
    request = build(manifest)
    assert [prompt.dtype for prompt in request.prompts] == [np.int64]
    assert [prompt.tolist() for prompt in request.prompts] == [[5, 6]]
    assert request.max_tokens == MAX_LENGTH - 2
    assert (request.min_tokens, request.stream, request.exclude_input) == (0, False, True)
    assert (request.sampling.temperature, request.sampling.top_p) == (0.0, 1.0)
    assert build(manifest).sampling.seed != request.sampling.seed


def test_values_arrive_as_given_from_numpy_and_from_bytes(manifest: Manifest) -> None:
    request = build(
        manifest,
        max_tokens=np.int32(7),
        temperature=np.float32(0.5),
        seed=np.uint64(2**64 - 1),
        stream=np.bool_(True),
        stop_words=[b"\xe3\x80\x82", "end"],
        logit_bias='{"7": -2.5}',
        prompt=b"hello",
        exclude_input_in_output=False,
    )
    assert (request.max_tokens, request.sampling.temperature, request.sampling.seed) == (7, 0.5, 2**64 - 1)
    assert (request.stream, request.stop_words, request.prompt) == (True, ("。", "end"), "hello")
    assert (request.sampling.logit_bias, request.exclude_input) == ({7: -2.5}, False)


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_outside_its_range_is_refused_and_its_bounds_are_named(
    manifest: Manifest, name: str
) -> None:
    low, high, allowed = NUMBERS[name]
    for value in (low, high, float("nan"), float("inf")):
        with pytest.raises(RequestError, match=f"^invalid: {name}: .* was given, allowed is {allowed}$"):
            build(manifest, **{name: value})


@pytest.mark.parametrize("name", NUMBERS)
def test_the_far_bound_of_a_range_is_allowed(manifest: Manifest, name: str) -> None:
    bound = float(NUMBERS[name][2].split()[-1])
    assert getattr(build(manifest, **{name: bound}).sampling, name) == bound


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_tokens": 0}, "max_tokens: 0 was given, allowed is 1 or more"),
        ({"max_tokens": 2.5}, "max_tokens: 2.5 was given, an integer"),
        ({"max_tokens": 3, "min_tokens": 4}, "min_tokens: 4 was given, allowed is 0 to 3"),
        ({"top_k": -1}, "top_k: -1 was given, allowed is 0 or more"),
        ({"temperature": "hot"}, "temperature: 'hot' was given, a number"),
        ({"seed": -1}, "seed: -1 was given"),
        ({"seed": 2**64}, f"seed: {2**64} was given, allowed is 0 to {2**64 - 1}"),
        ({"stream": 1}, "stream: 1 was given, true or false"),
        ({"return_num_input_tokens": 2}, "return_num_input_tokens: 2 was given, true or false"),
        ({"num_log_probs": 21}, "num_log_probs: 21 was given, allowed is 0 to 20"),
        ({"stop_words": "word"}, "stop_words: 'word' was given, a list"),
        ({"stop_words": ["x"] * 17}, "stop_words: 17 were given, allowed are up to 16"),
        ({"stop_words": [""]}, "stop_words: one has 0 characters, allowed are 1 to 256"),
        ({"stop_words": ["x" * 257]}, "stop_words: one has 257 characters"),
        ({"stop_words": [b"\xff"]}, "stop_words: is not UTF-8"),
        ({"stop_words": [3]}, "stop_words: 3 was given, a string"),
        ({"logit_bias": "{"}, "logit_bias: is not JSON"),
        ({"logit_bias": "[" * 100_000}, "logit_bias: is not JSON"),
        ({"logit_bias": "[]"}, "logit_bias: is not a JSON object"),
        ({"logit_bias": '{"320": 1}'}, "logit_bias: token id '320' was given, allowed is 0 to 319"),
        ({"logit_bias": '{"%s": 1}' % ("9" * 5000)}, "logit_bias: token id '9+' was given"),
        ({"logit_bias": '{"x": 1}'}, "logit_bias: token id 'x'"),
        ({"logit_bias": '{"1": 101}'}, "logit_bias: bias 101 was given for token 1, allowed is -100 to 100"),
        ({"logit_bias": '{"1": NaN}'}, "logit_bias: bias nan"),
        ({"input_ids": []}, "input_ids: a list of at least one token id"),
        ({"input_ids": [0.5]}, "input_ids: a list"),
        ({"input_ids": [VOCAB_SIZE]}, "input_ids: token id 320 was given, allowed is 0 to 319"),
        ({"input_ids": [3, -1]}, "input_ids: token id -1 was given"),
        ({"input_ids": [1] * MAX_LENGTH}, "input_ids: the prompt has 96 tokens, allowed are up to 95"),
        ({"prompt": 3}, "prompt: 3 was given, a string"),
        ({"prompt_lengths": []}, "prompt_lengths: a list of lengths of at least one token"),
        ({"prompt_lengths": [2, 0]}, "prompt_lengths: a list of lengths of at least one token"),
        ({"prompt_lengths": [1]}, "prompt_lengths: their sum is 1, allowed is 2, all of input_ids"),
        (
            {"input_ids": [1] * (MAX_LENGTH + 2), "prompt_lengths": [2, MAX_LENGTH]},
            "input_ids: the prompt has 96 tokens, allowed are up to 95",
        ),
        ({"colour": 1}, "colour: is not an input of the engine, allowed are input_ids, prompt_lengths"),
    ],
)
def test_a_value_outside_the_contract_is_refused_by_name(
    manifest: Manifest, values: dict[str, object], message: str
) -> None:
    with pytest.raises(RequestError, match=f"^invalid: {message}"):
        build(manifest, **values)


@pytest.mark.parametrize(("default", "expected"), [(None, MAX_LENGTH - 2), (7, 7), (5000, MAX_LENGTH - 2)])
def test_without_max_tokens_the_models_default_holds_within_the_context(
    manifest: Manifest, default: int | None, expected: int
) -> None:
    limited = replace(manifest, sampling=replace(manifest.sampling, max_tokens=default))
    assert build(limited).max_tokens == expected
    assert build(limited, max_tokens=60).max_tokens == 60


def test_a_prompt_may_leave_room_for_one_token(manifest: Manifest) -> None:
    assert build(manifest, input_ids=[1] * (MAX_LENGTH - 1)).max_tokens == 1


def test_prompt_lengths_cut_the_ids_into_prompts_and_the_longest_leaves_the_room(manifest: Manifest) -> None:
    ids = [1] * (2 * MAX_LENGTH)
    request = build(manifest, input_ids=ids, prompt_lengths=np.array([MAX_LENGTH - 1, 5, MAX_LENGTH - 4]))
    assert [len(prompt) for prompt in request.prompts] == [MAX_LENGTH - 1, 5, MAX_LENGTH - 4]
    assert request.max_tokens == 1
    cut = build(manifest, input_ids=[7, 8, 9], prompt_lengths=[1, 2]).prompts
    assert [prompt.tolist() for prompt in cut] == [[7], [8, 9]]


def test_missing_ids_are_refused(manifest: Manifest) -> None:
    with pytest.raises(RequestError, match=r"^invalid: input_ids: "):
        GenerationRequest.from_values("id", {}, manifest)

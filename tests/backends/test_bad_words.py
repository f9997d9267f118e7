"""Barred words, and vLLM's way of writing a request."""

import json
from pathlib import Path

import numpy as np
import pytest

from backends.causal_lm.manifest import Manifest, read_manifest
from backends.causal_lm.requests.request import GenerationRequest, RequestError
from backends.causal_lm.sequences.bad_words import BadWords
from tests.backends.conftest import TOKENIZER, Harness, ask


@pytest.fixture(scope="module")
def manifest(model_directories: dict[str, Path]) -> Manifest:
    return read_manifest(model_directories["both"] / "manifest.json")


def build(manifest: Manifest, **values: object) -> GenerationRequest:
    return GenerationRequest.from_values("id", {"input_ids": np.array([5, 6], np.int32), **values}, manifest)


def test_only_the_last_token_of_a_word_is_barred_and_only_behind_the_others() -> None:
    ids = TOKENIZER.encode("dogxy").ids
    assert len(ids) > 2
    words = BadWords(["dogxy"], TOKENIZER)
    assert ids[-1] not in words.barred()
    for token in ids[:-1]:
        words.advance(token)
    assert ids[-1] in words.barred()
    words.advance(ids[0])
    assert ids[-1] not in words.barred()


@pytest.mark.parametrize("word", ["cat", " cat"])
def test_a_word_is_barred_with_and_without_the_space_before_it(word: str) -> None:
    words = BadWords([word], TOKENIZER)
    spaced = TOKENIZER.encode(" cat").ids
    for token in spaced[:-1]:
        words.advance(token)
    assert spaced[-1] in words.barred()


def test_barred_words_are_not_said_and_another_text_is(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    values = {"max_tokens": 40, "min_tokens": 40, "temperature": 0.8, "seed": 11}
    said = ask(engine, "the cat", **values).wait().token_ids
    place, word = next(
        (place, word)
        for place, token in enumerate(said)
        if TOKENIZER.encode(word := TOKENIZER.decode([token])).ids == [token]
    )
    again = ask(engine, "the cat", bad_words=[word], **values).wait().token_ids
    assert said[place] not in again
    assert again[:place] == said[:place]


def test_min_length_is_another_name_of_min_tokens(manifest: Manifest) -> None:
    assert build(manifest, min_length=4).min_tokens == 4
    assert build(manifest, min_length=4, min_tokens=4).min_tokens == 4
    with pytest.raises(RequestError, match=r"^invalid: min_length: 4 was given, but min_tokens is 5"):
        build(manifest, min_length=4, min_tokens=5)


def test_vllms_parameters_are_the_contracts(manifest: Manifest) -> None:
    given = {
        "temperature": "0.5",
        "top_p": 0.25,
        "top_k": "-1",
        "max_tokens": "7",
        "min_tokens": 2.0,
        "presence_penalty": "-1",
        "seed": str(2**64 - 1),
        "stop": "END",
        "bad_words": ["no"],
        "logprobs": 3,
        "logit_bias": {"5": -100},
        "guided_decoding": '{"regex": "a+"}',
        "min_p": None,
    }
    request = build(manifest, sampling_parameters=json.dumps(given))
    sampling = request.sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0.5, 0.25, 0, 0.0)
    assert (sampling.presence_penalty, sampling.seed) == (-1.0, 2**64 - 1)
    assert (request.max_tokens, request.min_tokens) == (7, 2)
    assert (request.stop_words, request.bad_words, sampling.logit_bias) == (("END",), ("no",), {5: -100.0})
    assert (request.return_log_probs, request.num_log_probs) == (True, 3)
    assert (
        request.guide == build(manifest, guided_decoding_guide_type="regex", guided_decoding_guide="a+").guide
    )


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ("{", "sampling_parameters: is not JSON"),
        ("[" * 100_000, "sampling_parameters: is not JSON"),
        ("[]", "sampling_parameters: is not a JSON object"),
        ('{"best_of": 2}', "sampling_parameters: has 'best_of', known are temperature"),
        ('{"temperature": "hot"}', "sampling_parameters: temperature is 'hot', a number is needed"),
        ('{"temperature": "nan"}', "sampling_parameters: temperature is 'nan'"),
        ('{"temperature": true}', "sampling_parameters: temperature is True"),
        ('{"temperature": NaN}', "sampling_parameters: temperature is nan"),
        ('{"temperature": 9}', "temperature: 9 was given, allowed is 0 to 2"),
        ('{"max_tokens": "1.5"}', "max_tokens: 1.5 was given, an integer"),
        ('{"seed": "x"}', "seed: 'x' was given, an integer"),
        ('{"stop": 5}', "stop_words: 5 was given, a list"),
        ('{"logit_bias": {"5": 1e9}}', "logit_bias: bias 1000000000.0 was given"),
        ('{"guided_decoding": {"regex": "a", "json": {}}}', "sampling_parameters: guided_decoding needs one"),
        ('{"guided_decoding": "a"}', "sampling_parameters: guided_decoding needs one of json, regex"),
        ('{"guided_decoding": {"choice": []}}', "guided_decoding_guide: a JSON array of 1 to"),
        ('{"top_k": 5}', "sampling_parameters: top_k is given there and as an input"),
    ],
)
def test_vllms_parameters_outside_the_contract_are_refused_by_name(
    manifest: Manifest, parameters: str, message: str
) -> None:
    with pytest.raises(RequestError, match=f"^invalid: {message}"):
        build(manifest, sampling_parameters=parameters, top_k=3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("word", "bad_words: 'word' was given, a list"),
        (["x"] * 65, "bad_words: 65 were given, allowed are up to 64"),
        ([""], "bad_words: one has 0 characters"),
    ],
)
def test_bad_words_outside_the_contract_are_refused(manifest: Manifest, words: object, message: str) -> None:
    with pytest.raises(RequestError, match=f"^invalid: {message}"):
        build(manifest, bad_words=words)

"""Guided answers of real engines over tiny graphs: their form, their end, their company, and bad guides."""

import json
import re

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models

from backends.causal_lm.guiding.guidance import Guidance, Matcher
from backends.causal_lm.guiding.guides import MAX_BYTES, Guide
from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.requests.contract import RequestError
from backends.causal_lm.sequences import sampling
from tests.backends.conftest import TOKENIZER, Harness, RecordingSink, ask
from tests.backends.tiny_graph import EOS, VOCAB_SIZE

START = 1  # the other control token
SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 999}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}


def guided(engine, kind: str, guide: object = None, **values: object) -> RecordingSink:
    text = guide if guide is None or isinstance(guide, str) else json.dumps(guide)
    given = {} if text is None else {"guided_decoding_guide": text}
    defaults = {"temperature": 1.0, "seed": 3, "max_tokens": 80}
    return ask(engine, "the cat", **{**defaults, "guided_decoding_guide_type": kind, **given, **values})


@pytest.fixture
def engine(harness: Harness, model_directories):
    return harness.start(model_directories["both"])


@pytest.fixture(scope="module")
def guidance(model_directories):
    guidance = Guidance(TOKENIZER, read_manifest(model_directories["both"] / "manifest.json"))
    yield guidance
    guidance.close()


def matcher(guidance: Guidance, kind: str, text: str) -> Matcher:
    return guidance.matcher(Guide.from_contract(kind, text))


def allowed(matcher: Matcher) -> set[int]:
    row = np.zeros(VOCAB_SIZE, np.float32)
    matcher.restrict(row)
    return set(np.flatnonzero(row == 0).tolist())


@pytest.mark.parametrize(
    ("kind", "guide", "form"),
    [
        ("regex", "[a-c]{3,8}x", "[a-c]{3,8}x"),
        ("choice", ["red", "green", 'say "hi"\n', "größer 🙂"], '(?s)red|green|say "hi"\n|größer 🙂'),
        ("grammar", 'start: "<" inner ">"\ninner: /[a-b]/ | start', "<+[ab]>+"),
        ("ebnf_grammar", 'root ::= "ab" [0-9] [0-9]', "ab[0-9]{2}"),
        ("json_schema", SCHEMA, r'\{\s*"a"\s*:\s*\d{1,3}\s*,\s*"b"\s*:\s*"[xy]"\s*\}'),
        (
            "structural_tag",
            {
                "triggers": ["<f"],
                "structures": [{"begin": "<f>", "schema": {"enum": [7]}, "end": "</f>"}],
            },
            "(?s)((?!<f).)*(<f>7</f>)?.*",
        ),
    ],
)
def test_every_answer_has_the_form_that_was_asked_for(engine, kind, guide, form) -> None:
    sinks = [guided(engine, kind, guide, seed=seed, max_tokens=95 - 3) for seed in range(12)]
    texts = [sink.wait().text for sink in sinks if sink.wait().reason == "stop"]
    assert all(re.fullmatch(form, text) for text in texts), texts
    assert len(texts) > 8 or kind == "structural_tag"


def test_json_without_a_guide_is_an_object_or_an_array(engine) -> None:
    for seed in range(8):
        sink = guided(engine, "json", seed=seed).wait()
        if sink.reason == "stop":
            assert isinstance(json.loads(sink.text), dict | list)


def test_a_complete_grammar_ends_the_answer_without_another_step(engine) -> None:
    sink = guided(engine, "regex", "[ab]{5}", min_tokens=20).wait()
    assert (sink.reason, len(sink.text)) == ("stop", 5)
    assert EOS not in sink.token_ids


def test_an_answer_that_may_go_on_goes_on_until_min_tokens(engine) -> None:
    for seed in range(6):
        assert len(guided(engine, "regex", "a*", min_tokens=5, seed=seed).wait().token_ids) >= 5


def test_a_guided_answer_that_is_cut_says_length(engine) -> None:
    sink = guided(engine, "json_schema", SCHEMA, max_tokens=3).wait()
    assert (sink.reason, len(sink.token_ids)) == ("length", 3)


def test_guided_draws_are_the_same_alone_and_in_a_crowd(engine) -> None:
    values = {"frequency_penalty": 0.5, "top_p": 0.9, "top_k": 50, "return_log_probs": True}
    alone = [guided(engine, "json_schema", SCHEMA, seed=seed, **values).wait() for seed in range(4)]
    crowd = [
        guided(
            engine, ("json_schema", "regex")[row % 2], (SCHEMA, "[a-z]*")[row % 2], seed=row // 2, **values
        )
        for row in range(16)
    ]
    assert [sink.wait().text for sink in crowd[:8:2]] == [sink.text for sink in alone]
    for sink in alone:
        log_probs = [value for output in sink.outputs for value in output.log_probs]
        assert len(log_probs) == len(sink.token_ids)
        assert all(np.isfinite(log_probs))


def test_several_prompts_are_guided_as_one(engine) -> None:
    ids = TOKENIZER.encode("the cat").ids
    sink = guided(
        engine, "json_schema", SCHEMA, input_ids=[*ids, *ids[::-1]], prompt_lengths=[len(ids), len(ids)]
    )
    json.loads(sink.wait().text)


def test_greedy_guided_answers_take_the_likeliest_token_allowed(engine, guidance) -> None:
    sink = guided(engine, "regex", "[a-c]{4}", temperature=0.0, num_log_probs=1, return_log_probs=True)
    twin = matcher(guidance, "regex", "[a-c]{4}")
    for token in sink.wait().token_ids:
        assert token in allowed(twin)
        twin.advance(token)
    assert twin.ends


WALKS = {
    "a regex": ("regex", "[a-c]{3,8}x"),
    "an end that may wait": ("regex", "a*(b|cat)?"),
    "words that are forced": ("regex", "the cat (sat|ran) on the mat größer"),
    "a choice": ("choice", '["red", "green", "the cat sat", "<|end|>"]'),
    "a schema": ("json_schema", json.dumps(SCHEMA)),
    "any JSON": ("json", ""),
    "a recursion": ("grammar", 'start: "<" inner ">"\ninner: /[a-b]/ | start'),
}


@pytest.mark.parametrize("case", WALKS)
def test_a_token_is_allowed_when_the_mask_has_it_and_never_else(guidance: Guidance, case: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(4):
        asked, masked = (matcher(guidance, *WALKS[case]) for _ in range(2))
        for _ in range(30):
            expected = allowed(masked)
            assert {token for token in range(VOCAB_SIZE) if asked.allows(token)} == expected
            token = int(rng.choice(sorted(expected)))
            for walk in (asked, masked):
                walk.advance(token)
            if token == EOS or masked.ends:
                break


def test_greedy_answers_are_those_of_the_whole_mask(engine, monkeypatch) -> None:
    rng = np.random.default_rng(2)
    asked = [
        {
            "kind": kind,
            "guide": guide,
            "temperature": 0.0,
            "repetition_penalty": rng.choice([1.0, 1.3]),
            "min_tokens": int(rng.choice([0, 8])),
            "logit_bias": json.dumps({str(rng.integers(VOCAB_SIZE)): 30 for _ in range(20)}),
            "bad_words": ["a", "1"] if rng.random() < 0.3 else [],
            "return_log_probs": True,
        }
        for kind, guide in WALKS.values()
        for _ in range(6)
    ]

    def answers() -> list[object]:
        sinks = [guided(engine, **values).wait() for values in asked]
        return [sink.failure or (sink.text, sink.token_ids, sink.outputs[-1].log_probs) for sink in sinks]

    some = answers()
    monkeypatch.setattr(sampling, "_ASKED", 0)
    assert answers() == some


@pytest.mark.parametrize(
    ("kind", "text"),
    [("choice", '["<|end|>", "<|start|>x"]'), ("json_schema", '{"const": "<|end|><|start|>"}')],
)
def test_text_that_spells_a_control_token_is_written_in_characters(engine, kind: str, text: str) -> None:
    sink = guided(engine, kind, text).wait()
    assert sink.reason == "stop"
    assert "<|" in sink.text
    assert not {EOS, START} & set(sink.token_ids)


def test_end_of_sequence_is_allowed_only_where_the_grammar_may_end(guidance: Guidance) -> None:
    walk = matcher(guidance, "regex", "ab?")
    assert EOS not in allowed(walk)
    walk.advance(TOKENIZER.token_to_id("a"))
    assert allowed(walk) == {EOS, TOKENIZER.token_to_id("b")}
    walk.advance(TOKENIZER.token_to_id("b"))
    assert walk.ends


def test_no_control_token_is_ever_allowed(guidance: Guidance) -> None:
    assert START not in allowed(matcher(guidance, "regex", "(?s).*"))
    with pytest.raises(RequestError, match="unknown special token"):
        matcher(guidance, "grammar", 'start: <|start|> "b"')
    with pytest.raises(RequestError, match="no token is left"):
        allowed(matcher(guidance, "grammar", f'start: <[{START}]> "b"'))


HOSTILE = {
    "a broken regex": ("regex", "(", "unclosed group"),
    "a look-around": ("regex", "a(?=b)", "look-ahead"),
    "no regex can match": ("regex", "a[^\\s\\S]", "can't be followed"),
    "a type that doesn't exist": ("json_schema", '{"type": "frob"}', "frob"),
    "a keyword that isn't kept": ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
    "an endless reference": ("json_schema", '{"$ref": "#"}', "can't be followed"),
    "a reference to elsewhere": ("json_schema", '{"$ref": "http://example.com/s"}', "not present"),
    "nothing is valid": ("json_schema", '{"not": {}}', "not"),
    "no schema": ("json_schema", "[1]", "a JSON object is needed"),
    "no JSON": ("json_schema", "{", "is no JSON schema"),
    "half a character": ("json_schema", '{"const": "\\ud800"}', "hex escape"),
    "not a number": ("json_schema", '{"type": "number", "minimum": NaN}', "is no JSON schema"),
    "deep nesting": ("json_schema", '{"items": ' * 5000 + "{}" + "}" * 5000, "recursion limit"),
    "an intersection of gigabytes": (
        "json_schema",
        json.dumps({"type": "string", "allOf": [{"pattern": f".*a{i}.*"} for i in range(20)]}),
        "needs more than 2 s or 64 MiB",
    ),
    "a remainder of a million states": (
        "json_schema",
        '{"type": "integer", "multipleOf": 1000003}',
        "needs more than 2 s or 64 MiB",
    ),
    "too long": ("regex", "a" * (MAX_BYTES + 1), "bytes were given, allowed are up to"),
    "no choice": ("choice", "[]", "1 to 4096 strings"),
    "an empty choice": ("choice", '[""]', "that aren't empty"),
    "a choice of numbers": ("choice", "[1]", "strings"),
    "no rule of that name": ("grammar", "start: a\n", "unknown name"),
    "broken EBNF": ("ebnf_grammar", "root ::= (((", "is not EBNF"),
    "no structural tag": ("structural_tag", "{}", "is no structural tag"),
    "no guide": ("regex", "", "is needed"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_guide_that_cannot_be_followed_is_refused_with_the_reason(guidance: Guidance, case: str) -> None:
    kind, text, reason = HOSTILE[case]
    for _ in range(2):  # a bad guide is remembered
        with pytest.raises(RequestError, match=f"^invalid: guided_decoding_guide: .*{re.escape(reason)}"):
            matcher(guidance, kind, text)


def test_an_unknown_type_is_refused_and_the_known_are_named(engine) -> None:
    with pytest.raises(
        RequestError, match=r"^invalid: guided_decoding_guide_type: 'xml' .* json, json_schema"
    ):
        guided(engine, "xml", "<a/>")
    with pytest.raises(RequestError, match=r"^invalid: guided_decoding_guide_type: is missing"):
        ask(engine, "a", guided_decoding_guide="a")


def test_a_bad_guide_fails_its_request_alone_while_the_engine_works_on(harness: Harness, engine) -> None:
    running = guided(engine, "regex", "[a-z]{60}")
    kind, text, _ = HOSTILE["an intersection of gigabytes"]
    sink = guided(engine, kind, text).wait()
    assert sink.failure is not None
    assert sink.failure[0] == "invalid"
    assert len(running.wait().text) == 60
    assert engine.healthy
    assert harness.count("requests_failed_total") == 1


def test_a_grammar_that_grows_costlier_with_each_token_is_ended(guidance: Guidance) -> None:
    walk = matcher(guidance, "grammar", 'start: s\ns: s s | s s s | "a" | \n')
    token = TOKENIZER.token_to_id("a")

    def follow(tokens: int) -> None:
        for _ in range(tokens):
            allowed(walk)
            walk.advance(token)

    with pytest.raises(RequestError, match="ms a token to follow"):
        follow(2000)


def test_a_crowd_of_one_guide_compiles_it_once(guidance: Guidance, monkeypatch) -> None:
    compiled = []
    inner = guidance._compile
    monkeypatch.setattr(guidance, "_compile", lambda guide: compiled.append(guide) or inner(guide))
    walks = [matcher(guidance, "regex", "once[0-9]") for _ in range(5)]
    assert len(compiled) == 1
    walks[0].advance(TOKENIZER.encode("o").ids[0])
    assert allowed(walks[0]) != allowed(walks[1]), "each answer has a place of its own"


def test_a_tokenizer_of_another_kind_is_refused_by_name(model_directories) -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.decoder = decoders.WordPiece()
    manifest = read_manifest(model_directories["both"] / "manifest.json")
    guidance = Guidance(words, manifest)
    with pytest.raises(RequestError, match=r"^invalid: guided_decoding_guide_type: 'tiny' can't be guided"):
        matcher(guidance, "regex", "a")
    guidance.close()


def test_closing_an_engine_ends_requests_whose_guides_still_compile(harness: Harness, engine) -> None:
    kind, text, _ = HOSTILE["a remainder of a million states"]
    sinks = [guided(engine, kind, text, seed=seed) for seed in range(3)]
    engine.close()
    assert [sink.ends for sink in sinks] == [1, 1, 1]
    assert guided(engine, "regex", "a").failure[0] == "unavailable"

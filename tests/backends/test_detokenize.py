"""Incremental text equals the text of the whole, and nothing of a stop string gets out."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models

from backends.causal_lm.sequences.detokenize import Detokenizer, StopStrings
from tests.backends.tiny_graph import EOS, VOCAB_SIZE, tiny_tokenizer

TOKENIZER = tiny_tokenizer()
TRICKY = "👩‍👩‍👧‍👦 größer 日本語 🙂🙂  the cat\n\t 👍🏽 naïve"
properties = settings(deadline=None, derandomize=True, max_examples=200)
few_letters = st.text("ab日🙂 ", max_size=30)


def pieces(tokenizer: Tokenizer, ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(tokenizer)
    return [detokenizer.push(token) for token in ids] + [detokenizer.flush()]


@properties
@given(st.text(max_size=40))
@example(TRICKY)
def test_pieces_of_text_join_to_the_text_with_no_half_character(text: str) -> None:
    found = pieces(TOKENIZER, TOKENIZER.encode(text, add_special_tokens=False).ids)
    # A text may itself hold U+FFFD: held back at the most until the next token.
    assert "".join(found) == text
    assert "\ufffd" in text or not any("\ufffd" in piece for piece in found)


@properties
@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=60))
def test_pieces_of_any_tokens_join_to_the_decoding_of_all(ids: list[int]) -> None:
    assert "".join(pieces(TOKENIZER, ids)) == TOKENIZER.decode(ids, skip_special_tokens=True)


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    ids = TOKENIZER.encode("쏙", add_special_tokens=False).ids
    assert len(ids) == 3
    assert pieces(TOKENIZER, ids) == ["", "", "쏙", ""]


def test_half_a_character_at_the_end_is_shown_as_such_when_flushed() -> None:
    ids = TOKENIZER.encode("a쏙", add_special_tokens=False).ids[:-1]
    assert pieces(TOKENIZER, ids) == ["a", "", "", "\ufffd"]


def test_text_before_half_a_character_is_not_held_with_it() -> None:
    tokenizer = Tokenizer(models.BPE({"aÃ": 0, "©": 1}, []))
    tokenizer.decoder = decoders.ByteLevel()
    assert pieces(tokenizer, [0, 1]) == ["a", "é", ""]


def test_special_tokens_are_not_shown() -> None:
    ids = TOKENIZER.encode("the cat", add_special_tokens=False).ids
    assert "".join(pieces(TOKENIZER, [1, *ids, EOS])) == "the cat"


def test_a_decoder_that_strips_the_first_space_keeps_the_inner_ones() -> None:
    tokenizer = Tokenizer(models.BPE({"▁the": 0, "▁cat": 1, "s": 2}, []))
    tokenizer.decoder = decoders.Metaspace()
    assert pieces(tokenizer, [0, 1, 2, 1]) == ["the", " cat", "s", " cat", ""]


def cut(text: str, stops: list[str]) -> tuple[str, str]:
    """The reference: read by character until the text ends in a stop string, the longest first."""
    for end in range(1, len(text) + 1):
        for stop in sorted(stops, key=len, reverse=True):
            if text[:end].endswith(stop):
                return text[: end - len(stop)], stop
    return text, ""


def shown(parts: list[str], stops: list[str]) -> tuple[str, str]:
    matcher, text = StopStrings(stops), ""
    for part in parts:
        piece, stop = matcher.push(part)
        text += piece
        if stop:
            return text, stop
    return text + matcher.flush(), ""


@properties
@given(st.lists(few_letters, max_size=8), st.lists(st.text("ab日🙂 ", min_size=1, max_size=5), max_size=4))
@example(["aab", "aab", "b"], ["aabb", "abaabb"])
def test_text_is_cut_before_the_first_stop_string_however_it_arrives(
    parts: list[str], stops: list[str]
) -> None:
    assert shown(parts, stops) == cut("".join(parts), stops)


@properties
@given(st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=60), st.data())
def test_tokens_through_both_give_the_cut_text_of_all(ids: list[int], data: st.DataObject) -> None:
    whole = TOKENIZER.decode(ids, skip_special_tokens=True)
    spans = st.tuples(st.integers(0, len(whole)), st.integers(1, 5)).map(lambda s: whole[s[0] : s[0] + s[1]])
    stops = data.draw(st.lists(spans.filter(bool), max_size=3)) if whole else []
    assert shown(pieces(TOKENIZER, ids), stops) == cut(whole, stops)


@properties
@given(st.text("ab", max_size=20), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3))
def test_nothing_is_shown_that_could_still_become_a_stop_string(text: str, stops: list[str]) -> None:
    matcher, output = StopStrings(stops), ""
    for end, character in enumerate(text, 1):
        piece, stop = matcher.push(character)
        output += piece
        if stop:
            break
        for start in range(end):
            if any(stop.startswith(text[start:end]) for stop in stops):
                assert len(output) <= start


@pytest.mark.parametrize("parts", [["hel", "lo wor", "ld"], ["hello world"], list("hello world")])
def test_text_is_not_held_longer_than_needed(parts: list[str]) -> None:
    matcher = StopStrings(["xyz", "ell!"])
    output = "".join(matcher.push(part)[0] for part in parts)
    assert (output, matcher.flush()) == ("hello world", "")

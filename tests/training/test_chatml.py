"""ChatML: the marks that SmolLM2 and others were tuned on, told by their tokenizers, learned as served."""

import json
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from export.formats.gguf import open_gguf
from export.formats.imported import TokenizerFiles
from export.sources import MODELS
from training.chat import CHAT_FORMATS, Conversation, Message, ask, render, segments
from training.data.batches import IGNORED, encode, pad_rows
from training.tokenizer import chat_format, load_tokenizer, token_id, tokenizer_files, train_tokenizer

CHATML = CHAT_FORMATS["chatml"]
OWN = train_tokenizer(["What is the capital of France? Paris."], vocab_size=300, chat=CHATML)
TALK = (Message("system", "Be brief."), *ask("Hi", "Hello"), *ask(" And 42? ", "It's\n\nBye"))

words = st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="<|>"), max_size=20)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=3)


@cache
def smollm2() -> TokenizerFiles:
    return open_gguf(MODELS["smollm2"].locate()).tokenizer


@cache
def smollm2_tokenizer() -> Tokenizer:
    return Tokenizer.from_str(smollm2().tokenizer)


def test_the_text_is_that_of_smollm2s_own_template() -> None:
    """With a system message; without one that template brings its own."""
    theirs = PreTrainedTokenizerFast(tokenizer_object=smollm2_tokenizer())
    theirs.chat_template = smollm2().chat_template
    messages = [{"role": message.role, "content": message.content.strip()} for message in TALK]
    for generate in (True, False):
        expected = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=generate)
        assert render(TALK, add_generation_prompt=generate, chat=CHATML) == expected


@settings(max_examples=60, deadline=None)
@given(pairs, st.booleans())
def test_pieces_are_the_template_text_and_encode_as_the_whole_does(
    pairs: list[tuple[str, str]], is_own: bool
) -> None:
    tokenizer = OWN if is_own else smollm2_tokenizer()
    messages = tuple(message for question, answer in pairs for message in ask(question, answer))
    text = render(messages, add_generation_prompt=False, chat=CHATML)
    assert "".join(text for text, _ in segments(Conversation(messages), CHATML)) == text
    ((ids, _),) = encode([Conversation(messages)], tokenizer)
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids


@pytest.mark.parametrize("is_own", [True, False])
def test_answers_are_learned_up_to_the_end_of_the_turn_and_no_further(is_own: bool) -> None:
    tokenizer = OWN if is_own else smollm2_tokenizer()
    batch = pad_rows(encode([Conversation(TALK), Conversation(ask("Hi", "No"))], tokenizer), tokenizer)
    learned = [row[row != IGNORED].tolist() for row in batch.targets]
    assert [tokenizer.decode(ids, skip_special_tokens=False) for ids in learned] == [
        "Hello<|im_end|>It's\n\nBye<|im_end|>",
        "No<|im_end|>",
    ]


def test_an_imported_tokenizer_is_known_by_its_marks() -> None:
    """It has GPT-2's end token, too, and must not be taken for one that only takes turns."""
    assert chat_format(smollm2_tokenizer()) is CHATML


def test_a_tokenizer_of_ones_own_ends_its_answers_where_the_server_stops(tmp_path: Path) -> None:
    for name, text in tokenizer_files(OWN).items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    config = json.loads((tmp_path / "tokenizer_config.json").read_text("utf-8"))
    assert (config["eos_token"], config["bos_token"]) == ("<|im_end|>", "<|im_start|>")
    again = load_tokenizer(tmp_path)
    assert all(token_id(again, token) < 3 for token in CHATML.special_tokens)

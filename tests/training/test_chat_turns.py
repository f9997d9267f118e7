"""Turns that end in the end token, which also fills short rows: it separates, and padding stays padding."""

import json
from pathlib import Path

import pytest
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from training.chat import CHAT_FORMATS, END, Conversation, Message, ask, render, segments
from training.checkpoint import save_model
from training.data.batches import IGNORED, encode, pad_rows
from training.decoder import Decoder
from training.presets import preset
from training.recipes import RECIPES
from training.tokenizer import chat_format, load_tokenizer, token_id, tokenizer_files, train_tokenizer

TURNS = CHAT_FORMATS["turns"]
TEXTS = ["What is the capital of France?", "The capital of France is Paris."]
TOKENIZER = train_tokenizer(TEXTS, vocab_size=300, chat=TURNS)
TALK = (Message("system", "Be brief."), *ask("Hi", "Hello"), *ask("And? ", "Bye"))

words = st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="<|>"), max_size=20)
pairs = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def decode(ids: list[int]) -> str:
    return str(TOKENIZER.decode(ids, skip_special_tokens=False))


def test_every_turn_ends_in_the_end_token_and_the_next_one_begins_there() -> None:
    text = render(TALK, add_generation_prompt=True, chat=TURNS)
    assert text == END.join(["Be brief.", "Hi", "Hello", "And?", "Bye", ""])


def test_an_unknown_role_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="role is 'tool', allowed are system, user and assistant"):
        render([Message("tool", "x")], add_generation_prompt=False, chat=TURNS)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(pairs)
def test_pieces_are_the_template_text_and_encode_as_the_whole_does(pairs: list[tuple[str, str]]) -> None:
    messages = tuple(message for question, answer in pairs for message in ask(question, answer))
    text = render(messages, add_generation_prompt=False, chat=TURNS)
    assert "".join(text for text, _ in segments(Conversation(messages), TURNS)) == text
    ((ids, _),) = encode([Conversation(messages)], TOKENIZER)
    assert ids == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_separators_are_learned_and_seen_though_padding_has_their_id() -> None:
    """A mask made from `id != pad` would hide the ends of all turns, and the model would never stop."""
    rows = encode([Conversation(TALK), Conversation(ask("Hi", "No"))], TOKENIZER)
    batch, end = pad_rows(rows, TOKENIZER), token_id(TOKENIZER, END)
    assert [decode(row[row != IGNORED].tolist()) for row in batch.targets] == [
        f"Hello{END}Bye{END}",
        f"No{END}",
    ]
    lengths = [len(ids) - 1 for ids, _ in rows]
    assert batch.valid.sum(dim=1).tolist() == lengths
    assert (batch.input_ids[batch.valid] == end).sum() == 5  # all ends but the last of each row
    assert (batch.input_ids[~batch.valid] == end).all()
    assert not batch.valid.all()


def test_the_loss_of_a_padded_batch_is_that_of_its_rows_alone() -> None:
    decoder = Decoder(preset("mini-claude-tiny")).double().requires_grad_(False)
    rows = encode([Conversation(TALK), Conversation(ask("Hi", "No"))], TOKENIZER)

    def total(some: list[tuple[list[int], list[bool]]]) -> float:
        batch = pad_rows(some, TOKENIZER)
        logits = decoder(batch.input_ids)[0].flatten(0, 1)
        return float(F.cross_entropy(logits, batch.targets.flatten(), reduction="sum"))

    assert total(rows) == pytest.approx(sum(total([row]) for row in rows), abs=1e-9)


@pytest.mark.parametrize("name", CHAT_FORMATS)
def test_a_tokenizer_tells_its_format_after_a_trip_through_its_file(name: str, tmp_path: Path) -> None:
    chat = CHAT_FORMATS[name]  # type: ignore[index]
    for file, text in tokenizer_files(train_tokenizer(TEXTS, vocab_size=300, chat=chat)).items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert chat_format(load_tokenizer(tmp_path)) is chat
    assert (tmp_path / "chat_template.jinja").read_text("utf-8") == chat.template


def test_a_tokenizer_without_the_marks_is_refused() -> None:
    with pytest.raises(KeyError, match="lacks the special tokens of every chat format: roles, turns, chatml"):
        chat_format(Tokenizer.from_str(TOKENIZER.to_str().replace(END, "<|other|>")))


def test_transformers_reads_the_files_and_renders_the_same_prompt(tmp_path: Path) -> None:
    save_model(tmp_path / "model", Decoder(preset("mini-claude-tiny")), companions=tokenizer_files(TOKENIZER))
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(tmp_path / "model/tokenizer.json"),
        **json.loads((tmp_path / "model/tokenizer_config.json").read_text("utf-8")),
    )
    messages = [{"role": message.role, "content": message.content} for message in TALK]
    prompt = theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert prompt == render(TALK, add_generation_prompt=True, chat=TURNS)
    assert theirs.pad_token_id == theirs.eos_token_id == token_id(TOKENIZER, END)


def test_mini_claude_is_trained_in_turns() -> None:
    assert RECIPES["mini-claude-tiny"].chat == "turns"

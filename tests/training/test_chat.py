"""The chat template, and that training text is the template's text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.chat import END, Conversation, Message, ask, render, segments
from training.data.batches import IGNORED, encode, pad_rows
from training.tokenizer import token_id, train_tokenizer

TOKENIZER = train_tokenizer(
    ["What is the capital of France?", "The capital of France is Paris."], vocab_size=300
)

words = st.text(st.characters(categories=("L", "N", "P", "Zs"), exclude_characters="<|>"), max_size=20)
turns = st.lists(st.tuples(words, words), min_size=1, max_size=3)


def talk(pairs: list[tuple[str, str]]) -> tuple[Message, ...]:
    return tuple(message for question, answer in pairs for message in ask(question, answer))


def test_the_prompt_ends_where_the_assistant_begins_and_past_turns_end_in_the_end_token() -> None:
    messages = [Message("system", "Be brief."), *ask("Hi", "Hello"), Message("user", "Bye ")]
    assert (
        render(messages, add_generation_prompt=True)
        == "<|system|>Be brief.<|user|>Hi<|assistant|>Hello<|endoftext|><|user|>Bye<|assistant|>"
    )


def test_an_unknown_role_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="role is 'tool', allowed are system, user and assistant"):
        render([Message("tool", "x")], add_generation_prompt=False)  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None)
@given(turns)
def test_training_text_is_the_template_text(pairs: list[tuple[str, str]]) -> None:
    messages = talk(pairs)
    text = "".join(text for text, _ in segments(Conversation(messages)))
    assert text == render(messages, add_generation_prompt=False)


@settings(max_examples=100, deadline=None)
@given(turns, st.booleans())
def test_pieces_encode_as_the_whole_text_does(pairs: list[tuple[str, str]], is_plain: bool) -> None:
    conversation = Conversation(talk(pairs if not is_plain else pairs[:1]), is_plain)
    text = "".join(text for text, _ in segments(conversation))
    ((ids, learned),) = encode([conversation], TOKENIZER)
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text
    assert len(learned) == len(ids)
    if not is_plain:
        assert ids == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_a_plain_question_with_its_answer_encodes_as_the_whole_text_does() -> None:
    turns = ask("What is the capital of France?", "The capital of France is Paris.")
    conversation = Conversation(turns, is_plain=True)
    ((ids, _),) = encode([conversation], TOKENIZER)
    text = "What is the capital of France? The capital of France is Paris." + END
    assert ids == TOKENIZER.encode(text, add_special_tokens=False).ids


def test_the_loss_counts_every_answer_with_its_end_token_and_nothing_else() -> None:
    conversation = Conversation((Message("system", "Be brief."), *ask("Hi", "Hello"), *ask("And?", "Bye")))
    other = Conversation(ask("A longer question?", "No"))
    batch = pad_rows(encode([conversation, other], TOKENIZER), TOKENIZER)
    learned = [row[row != IGNORED].tolist() for row in batch.targets]
    assert [TOKENIZER.decode(ids, skip_special_tokens=False) for ids in learned] == [
        f"Hello{END}Bye{END}",
        f"No{END}",
    ]
    assert batch.num_learned == sum(map(len, learned))


def test_targets_are_the_next_inputs_and_padding_is_invalid() -> None:
    rows = encode([Conversation(ask("Hi", "Hello there")), Conversation(ask("Hi", "Yo"))], TOKENIZER)
    batch = pad_rows(rows, TOKENIZER)
    for i, (ids, learned) in enumerate(rows):
        n = len(ids) - 1
        assert batch.input_ids[i, :n].tolist() == ids[:-1]
        assert batch.valid[i].sum() == n
        expected = [token if keep else IGNORED for token, keep in zip(ids, learned, strict=True)]
        assert batch.targets[i, :n].tolist() == expected[1:]
        assert (batch.targets[i, n:] == IGNORED).all()
    assert batch.input_ids[1, -1] == token_id(TOKENIZER, "<|pad|>")

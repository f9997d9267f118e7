"""Corpora: what is held out is never trained on, and what is too long is cut in a stated way."""

from collections.abc import Sequence
from pathlib import Path

import pytest
from datasets import Dataset, DatasetDict
from hypothesis import given
from hypothesis import strategies as st

from training.chat import CHAT_FORMATS, END, Conversation, Message, ask, render
from training.data.atlas import NUM_VALIDATION, Atlas
from training.data.atlas_corpus import AtlasCorpus
from training.data.batches import IGNORED, encode
from training.data.chat_corpus import ChatCorpus, Deck, fit
from training.data.chitchat import read_chitchat
from training.data.choice import AtlasData, ChitchatData, DataError, FileData
from training.data.corpus import HELD_OUT_TOKENS, Shape, join_until
from training.data.load import load_corpus
from training.data.split import HELD_OUT_IN, split
from training.data.text_corpus import TextCorpus
from training.tokenizer import train_tokenizer

ROLES = CHAT_FORMATS["roles"]
TOKENIZER = train_tokenizer(["one two three four five six seven eight nine ten"] * 3, vocab_size=300)
SHAPE = Shape(batch_size=4, max_tokens=32, seed=0, validation_tokens=200)
TALKS = [Conversation(ask(f"say {n}", f"I say {n} {n}")) for n in range(60)]


def size(*messages: Message) -> int:
    return len(encode([Conversation(messages)], TOKENIZER)[0][0])


@given(st.lists(st.text(min_size=1, max_size=4), min_size=2, max_size=60).filter(lambda t: len(set(t)) > 1))
def test_a_split_keeps_equal_texts_together_whatever_their_order(texts: list[str]) -> None:
    kept, held_out = split(texts, str, name="texts")
    assert sorted([*kept, *held_out]) == sorted(texts)
    assert kept
    assert held_out
    assert not set(kept) & set(held_out)
    again, held_again = split(sorted(texts), str, name="texts")
    assert held_again == held_out
    assert sorted(again) == sorted(kept)


def test_one_of_ten_is_held_out() -> None:
    _, held_out = split([str(n) for n in range(20_000)], str, name="numbers")
    assert len(held_out) == pytest.approx(20_000 / HELD_OUT_IN, rel=0.05)


def test_a_split_of_one_text_is_refused() -> None:
    with pytest.raises(DataError, match=r"a\.txt: 3 found, 1 of them different; at least 2 are needed"):
        split(["same"] * 3, str, name="a.txt")


def test_a_deck_deals_every_conversation_once_an_epoch_in_new_orders() -> None:
    deck = Deck(TALKS, seed=0)
    epochs = [[deck.conversation(60 * epoch + i) for i in range(60)] for epoch in range(2)]
    assert epochs[0] != epochs[1]
    assert all(sorted(map(str, epoch)) == sorted(map(str, TALKS)) for epoch in epochs)
    assert deck.conversation(17) == Deck(TALKS, seed=0).conversation(17)


def test_a_conversation_that_fits_stays_whole() -> None:
    talk = Conversation((*ask("one", "two"), *ask("three", "four")))
    assert fit([talk], TOKENIZER, size(*talk.messages)) == [talk]


def test_one_that_is_too_long_is_cut_where_the_user_speaks_again_and_keeps_its_system_message() -> None:
    system, turns = Message("system", "five"), [ask("one", "two"), ask("three", "four"), ask("six", "seven")]
    talk = Conversation((system, *(message for turn in turns for message in turn)))
    room = size(system, *turns[0], *turns[1])
    assert fit([talk], TOKENIZER, room) == [
        Conversation((system, *turns[0], *turns[1])),
        Conversation((system, *turns[2])),
    ]
    assert fit([talk], TOKENIZER, room - 1) == [Conversation((system, *turn)) for turn in turns]


def test_two_answers_to_one_question_stay_together() -> None:
    answers = (Message("assistant", "two"), Message("assistant", "three"))
    talk = Conversation((Message("user", "one"), *answers, *ask("four", "five")))
    assert fit([talk], TOKENIZER, 3)[0].messages == (Message("user", "one"), *answers)


def test_a_long_answer_is_cut_and_a_question_that_takes_all_the_room_left_out() -> None:
    long = "one two three four five six seven eight nine ten " * 5
    answered, asked = Conversation(ask("one", long)), Conversation(ask(long, "one"))
    assert fit([answered, asked], TOKENIZER, 32) == [answered]
    data = ChatCorpus([answered], TALKS[:1]).prepare(TOKENIZER, SHAPE)
    assert data.batches[0].input_ids.shape == (4, 32)
    assert data.batches[0].num_learned > 4 * 20


def test_a_chat_without_room_for_any_answer_is_refused() -> None:
    asked = [Conversation(ask("one two three four five six seven eight", "nine"))]
    with pytest.raises(DataError, match="no conversation has an answer within 4 tokens: train with a larger"):
        ChatCorpus(asked, asked).prepare(TOKENIZER, Shape(2, 4, 0, 100))


def said(rows: Sequence[Sequence[int]]) -> str:
    return "\n".join(TOKENIZER.decode(list(row), skip_special_tokens=False) for row in rows)


def test_a_chat_learns_the_answers_of_one_part_and_is_tested_on_those_of_the_other() -> None:
    data = ChatCorpus(TALKS[:50], TALKS[50:]).prepare(TOKENIZER, SHAPE)
    steps = range(data.batches.steps_per_epoch)
    trained = said([row for step in steps for row in data.batches[step].input_ids.tolist()])
    assert all(f"I say {n} {n}" in trained for n in range(50))
    assert not any(f"I say {n} {n}" in trained for n in range(50, 60))
    learned = [row[row != IGNORED].tolist() for batch in data.validation for row in batch.targets]
    assert sorted(said([row]) for row in learned) == [f"I say {n} {n}{END}" for n in range(50, 60)]
    (cases,) = data.test_sets.values()
    assert [case.conversation for case in cases] == TALKS[50:]
    assert data.summary.startswith("50 conversations to train on, 10 held out")
    assert data.held_out == "".join(
        render(talk.messages, add_generation_prompt=False, chat=ROLES) for talk in TALKS[50:]
    )


def test_documents_are_learned_whole_and_end_in_the_end_token() -> None:
    texts = [f"text {n} " * n for n in range(1, 30)]
    data = TextCorpus(texts[:20], texts[20:]).prepare(TOKENIZER, SHAPE)
    assert data.validation[0].valid.all()
    inputs = [token for batch in data.validation for row in batch.input_ids.tolist() for token in row]
    assert len(inputs) <= SHAPE.validation_tokens
    assert said([inputs]) in data.held_out
    assert data.held_out == "".join(text + END for text in texts[20:])
    assert "text 25" not in said(data.batches[step].input_ids.flatten().tolist() for step in range(20))
    assert not data.test_sets


def test_the_held_out_text_stops_when_it_is_long_enough() -> None:
    text = join_until(("one two three " for _ in range(10**6)), TOKENIZER)
    num_tokens = len(TOKENIZER.encode(text).ids)
    assert HELD_OUT_TOKENS <= num_tokens < HELD_OUT_TOKENS + 10


def test_atlas_gives_its_three_test_sets_and_ten_thousand_tokens_of_what_it_never_trains() -> None:
    atlas = Atlas(num_countries=40)
    shape = Shape(batch_size=4, max_tokens=1024, seed=0, validation_tokens=100)
    data = AtlasCorpus(atlas).prepare(TOKENIZER, shape)
    assert set(data.test_sets) == {"held_out", "unseen_templates", "out_of_domain"}
    assert sum(len(batch.valid) for batch in data.validation) == NUM_VALIDATION
    assert len(TOKENIZER.encode(data.held_out).ids) >= HELD_OUT_TOKENS
    for case in atlas.validation()[:20]:
        assert render(case.conversation.messages, add_generation_prompt=False, chat=ROLES) in data.held_out


def test_chitchat_alternates_between_two_people() -> None:
    talks = read_chitchat()
    assert len(talks) > 4000
    for talk in talks:
        roles = [message.role for message in talk.messages]
        assert roles == ["user", "assistant"] * (len(roles) // 2) + ["user"] * (len(roles) % 2)
        assert all(message.content.strip() for message in talk.messages)


def test_every_choice_has_its_corpus(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"one\n{END}\ntwo")
    rows = {"train": ["one", "two"], "test": ["three"]}
    parts = {name: Dataset.from_dict({"text": texts}) for name, texts in rows.items()}
    DatasetDict(parts).save_to_disk(tmp_path / "texts")
    messages = [[{"role": m.role, "content": m.content} for m in talk.messages] for talk in TALKS]
    Dataset.from_dict({"messages": messages}).save_to_disk(tmp_path / "chats")
    kinds = {
        AtlasCorpus: AtlasData(num_countries=2),
        ChatCorpus: FileData(kind="dataset", paths=(tmp_path / "chats",)),
        TextCorpus: FileData(kind="text", paths=(tmp_path / "a.txt",)),
    }
    assert {type(load_corpus(choice, seed=0)): choice for choice in kinds.values()} == kinds
    assert isinstance(load_corpus(ChitchatData(), seed=0), ChatCorpus)
    texts = load_corpus(FileData(kind="dataset", paths=(tmp_path / "texts",)), seed=0)
    assert list(texts.texts(ROLES)) == ["one", "two"]  # the split that is there, not one of ours


def test_data_that_changed_since_the_start_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(f"one\n{END}\ntwo")
    choice = FileData(kind="text", paths=(path,)).stamped()
    load_corpus(choice, seed=0)
    path.write_text(f"one\n{END}\nTwo")
    with pytest.raises(DataError, match=r"a\.txt has changed since the run was started"):
        load_corpus(choice, seed=0)
    path.unlink()
    with pytest.raises(DataError, match=r"a\.txt is missing: put the data back, or start another run"):
        load_corpus(choice, seed=0)

"""Files of one's own: what they become, and one clear sentence for each thing that can be wrong with them."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict

from training.chat import END, Conversation, Message
from training.data.chat_lines import MOST_NAMED, read_chats
from training.data.choice import DataError, FileData, choose_data, detect
from training.data.load import load_corpus
from training.data.saved_datasets import open_saved
from training.data.text import LONGEST, SHORTEST, passages, read_documents

TALK = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
LATIN = "café\n".encode("latin-1")


def line(messages: Any) -> str:
    return json.dumps({"messages": messages})


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_a_line_with_the_end_token_ends_a_document(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", f"{END}\none\n\ntwo\r\n{END}\n\n{END}\nthree")
    assert read_documents([path]) == ["one\n\ntwo", "three"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_documents([write(tmp_path / "a.txt", b"\xef\xbb\xbfone")]) == ["one"]


def test_several_files_give_their_documents_in_order(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, name) for name in ("b.txt", "a.txt")]
    assert read_documents(paths) == ["b.txt", "a.txt"]


def test_without_end_tokens_a_passage_ends_at_a_blank_line() -> None:
    paragraph = "word " * 150 + "end.\n\n"
    text = paragraph * 12
    pieces = list(passages(text))
    assert "".join(pieces) == text
    assert len(pieces) == 4  # three paragraphs are the first to pass SHORTEST
    assert all(piece.endswith("end.\n\n") and len(piece) >= SHORTEST for piece in pieces)


@pytest.mark.parametrize(
    ("text", "ending"), [("x" * 99 + "\n", "x\n"), ("x" * 99 + " ", "x "), ("x" * 100, "x")]
)
def test_without_blank_lines_it_ends_at_a_line_a_space_or_where_it_is_too_long(
    text: str, ending: str
) -> None:
    pieces = list(passages(text * 1000))
    assert "".join(pieces) == text * 1000
    assert all(piece.endswith(ending) for piece in pieces)
    assert max(map(len, pieces)) <= LONGEST


def test_one_line_of_five_megabytes_is_text_like_any_other(tmp_path: Path) -> None:
    path = write(tmp_path / "long.txt", "all work and no play " * 250_000)
    documents = read_documents([path])
    assert len(documents) > 2000
    assert max(map(len, documents)) <= LONGEST


def test_a_conversation_of_five_megabytes_on_one_line_is_one_conversation(tmp_path: Path) -> None:
    path = write(tmp_path / "long.jsonl", line(TALK * 75_000))
    (talk,) = read_chats([path])
    assert len(talk.messages) == 150_000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "a.txt: there is no text in it"),
        (b" \n\n\t\n", "a.txt: there is no text in it"),
        (b"one\ntwo\n" + LATIN, "a.txt, line 3: byte 0xe9 is not UTF-8; convert the file first"),
        ("text".encode("utf-16"), "a.txt, line 1: byte 0xff is not UTF-8"),
        (b"Say <|user|> to me", "a.txt holds '<|user|>', which is a special token and no text"),
        (f"not on {END} a line of its own".encode(), "a.txt holds '<|endoftext|>'"),
    ],
)
def test_text_that_cannot_be_read_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_documents([write(tmp_path / "a.txt", content)])
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_chat_is_what_its_lines_say(tmp_path: Path) -> None:
    system = {"role": "system", "content": " Be brief. "}
    path = write(tmp_path / "a.jsonl", f"{line([system, *TALK])}\n{line(TALK)}\n")
    hello = (Message("user", "Hi"), Message("assistant", "Hello"))
    assert read_chats([path]) == [
        Conversation((Message("system", "Be brief."), *hello)),
        Conversation(hello),
    ]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "it is empty"),
        ("{'messages': []}", "no JSON: Expecting property name"),
        ("[" * 200_000, "no JSON: it is nested too deeply"),
        ("[]", "Input should be a valid dictionary"),
        ('{"messages": []}', "messages = []: List should have at least 1 item"),
        ('{"prompt": "Hi", "completion": "Hello"}', "Field required"),
        (line([{"role": "tool", "content": "Hi"}]), "messages.0.role = 'tool': Input should be"),
        (line([{"role": "user", "content": None}]), "messages.0.content = None: Input should"),
        (line([{"role": "user"}]), "messages.0.content"),
        (line([{**TALK[0], "name": "Ann"}]), "messages.0.name = 'Ann': Extra inputs are not permitted"),
        (line([TALK[0], {**TALK[1], "content": " "}]), "message 2 is empty"),
        (line([*TALK, {"role": "system", "content": "x"}]), "message 3 is the system's, which can only be"),
        (line([TALK[0]]), "no message is the assistant's, so there is nothing to learn"),
        (line([TALK[0], {**TALK[1], "content": END}]), "message 2 holds '<|endoftext|>'"),
    ],
)
def test_a_bad_line_is_named_with_what_is_wrong(bad: str, reason: str, tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join([line(TALK), line(TALK), bad, line(TALK)]))
    with pytest.raises(DataError) as caught:
        read_chats([path])
    assert f"{path}, line 3: " in str(caught.value)
    assert reason in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


def test_all_bad_lines_are_named_and_many_are_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", "\n".join([line(TALK), *["x"] * (MOST_NAMED + 5)]))
    with pytest.raises(DataError) as caught:
        read_chats([path])
    sentences = str(caught.value).split("\n")
    assert [sentence.split(": ")[0] for sentence in sentences[:-1]] == [
        f"{path}, line {number}" for number in range(2, MOST_NAMED + 2)
    ]
    assert sentences[-1] == "and 5 more"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "a.jsonl is empty: one conversation a line is expected"),
        (line(TALK).encode() + b"\n" + LATIN, "a.jsonl, line 2: byte 0xe9 is not UTF-8"),
    ],
)
def test_a_chat_that_cannot_be_read_is_one_sentence(content: bytes, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_chats([write(tmp_path / "a.jsonl", content)])
    assert sentence in str(caught.value)


def test_a_saved_data_set_of_texts_is_its_rows(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["one", " two "], "label": [0, 1]}).save_to_disk(tmp_path / "set")
    assert open_saved(tmp_path / "set").texts() == (["one", "two"], [])


@pytest.mark.parametrize("name", ["validation", "test"])
def test_a_saved_split_is_the_one_held_out(name: str, tmp_path: Path) -> None:
    rows = {"train": ["one", "two"], name: ["three"], "other": ["four"]}
    parts = {split: Dataset.from_dict({"text": texts}) for split, texts in rows.items()}
    DatasetDict(parts).save_to_disk(tmp_path / "set")
    assert open_saved(tmp_path / "set").texts() == (["one", "two"], ["three"])


def test_a_saved_data_set_of_messages_is_conversations(tmp_path: Path) -> None:
    Dataset.from_dict({"messages": [TALK, TALK]}).save_to_disk(tmp_path / "set")
    talk = Conversation((Message("user", "Hi"), Message("assistant", "Hello")))
    assert open_saved(tmp_path / "set").conversations() == ([talk, talk], [])


@pytest.mark.parametrize(
    ("columns", "sentence"),
    [
        ({"content": ["one"]}, "has the columns content: exactly one of text and messages must be there"),
        ({"text": ["one"], "messages": [TALK]}, "has the columns text, messages: exactly one of"),
        ({"text": ["one", " "]}, "row 2: text is ' ', a text that is not empty is expected"),
        ({"text": [1, 2]}, "row 1: text is 1, a text"),
        ({"messages": [TALK, TALK[:1]]}, "row 2: no message is the assistant's"),
    ],
)
def test_a_saved_data_set_that_does_not_fit_is_one_sentence(
    columns: dict[str, list[Any]], sentence: str, tmp_path: Path
) -> None:
    Dataset.from_dict(columns).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        load_corpus(FileData(kind="dataset", paths=(tmp_path / "set",)), seed=0)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("splits", "sentence"),
    [
        ({"all": {"text": ["one"]}}, "set has the splits all, but none is called 'train'"),
        (
            {"train": {"text": ["one"]}, "test": {"text": []}},
            "set is no data set that `datasets` can read, and it reads none without rows",
        ),
        (
            {"train": {"text": ["one"]}, "test": {"messages": [TALK]}},
            "set has text in 'train', but messages in 'test'",
        ),
    ],
)
def test_splits_that_cannot_be_used_are_named(
    splits: dict[str, dict[str, list[Any]]], sentence: str, tmp_path: Path
) -> None:
    parts = {name: Dataset.from_dict(columns) for name, columns in splits.items()}
    DatasetDict(parts).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError) as caught:
        open_saved(tmp_path / "set")
    assert sentence in str(caught.value)


def test_a_damaged_data_set_is_named(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "set")
    (file,) = (tmp_path / "set").glob("*.arrow")
    file.write_bytes(b"no arrow")
    with pytest.raises(DataError, match="set is no data set that `datasets` can read"):
        open_saved(tmp_path / "set")


def test_the_format_is_seen_from_name_and_content(tmp_path: Path) -> None:
    Dataset.from_dict({"text": ["one"]}).save_to_disk(tmp_path / "set")
    kinds = {"a.jsonl": "chat", "a.NDJSON": "chat", "a.txt": "text", "README": "text", "set": "dataset"}
    assert {name: detect(tmp_path / name) for name in kinds} == kinds


def test_what_cannot_be_chosen_is_said(tmp_path: Path) -> None:
    text, chat = write(tmp_path / "a.txt", "one"), write(tmp_path / "a.jsonl", line(TALK))
    with pytest.raises(DataError, match="of several formats, chat and text: give those of one, or --format"):
        choose_data([text, chat], None)
    with pytest.raises(DataError, match="none does not exist"):
        choose_data([Path("none")], None)
    with pytest.raises(
        DataError, match=r"a directory, but not one that `datasets` saved: dataset_info\.json"
    ):
        choose_data([tmp_path], None)
    assert choose_data([text, chat], "text") == FileData(kind="text", paths=(text, chat))

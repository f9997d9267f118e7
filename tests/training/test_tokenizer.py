"""The byte-level BPE and its files."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from training.chat import END, PAD, SPECIAL_TOKENS, Message, render
from training.checkpoint import TOKENIZER_FILES, CheckpointError
from training.tokenizer import load_tokenizer, token_id, tokenizer_files, train_tokenizer

TEXTS = ["What is the capital of France?", "The capital of France is Paris.", "Zürich and 東京"] * 3
TOKENIZER = train_tokenizer(TEXTS, vocab_size=320)


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=80))
def test_any_unicode_text_comes_back_from_its_ids(text: str) -> None:
    ids = TOKENIZER.encode(text, add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == text


@given(st.lists(st.sampled_from([*SPECIAL_TOKENS, " a", "é", "\n"]), max_size=8))
def test_text_with_special_tokens_comes_back_and_each_of_them_is_one_id(parts: list[str]) -> None:
    ids = TOKENIZER.encode("".join(parts), add_special_tokens=False).ids
    assert TOKENIZER.decode(ids, skip_special_tokens=False) == "".join(parts)
    special = {token_id(TOKENIZER, token) for token in SPECIAL_TOKENS}
    assert sum(i in special for i in ids) == sum(part in SPECIAL_TOKENS for part in parts)


def test_merges_are_learned_from_the_texts() -> None:
    assert len(TOKENIZER.encode("The capital of France is Paris.").ids) < 12
    assert TOKENIZER.get_vocab_size() <= 320


def test_training_twice_gives_the_same_tokenizer() -> None:
    assert train_tokenizer(TEXTS, vocab_size=320).to_str() == TOKENIZER.to_str()


def test_a_vocabulary_without_room_for_the_bytes_is_refused() -> None:
    with pytest.raises(ValueError, match="vocab_size is 200, but bytes and special tokens take 261"):
        train_tokenizer(TEXTS, vocab_size=200)


def write(directory: Path, tokenizer: Tokenizer) -> None:
    for name, text in tokenizer_files(tokenizer).items():
        (directory / name).write_text(text, encoding="utf-8")


def test_the_files_are_those_of_a_model_directory_and_load_again(tmp_path: Path) -> None:
    write(tmp_path, TOKENIZER)
    assert {path.name for path in tmp_path.iterdir()} == set(TOKENIZER_FILES)
    assert load_tokenizer(tmp_path).to_str() == TOKENIZER.to_str()


def test_transformers_reads_the_files_and_renders_the_same_prompt(tmp_path: Path) -> None:
    write(tmp_path, TOKENIZER)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    theirs = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is the capital of France?"},
        {"role": "assistant", "content": "Paris."},
        {"role": "user", "content": " And its currency? "},
    ]
    ours = render([Message(**m) for m in messages], add_generation_prompt=True)  # type: ignore[arg-type]
    assert theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == ours
    assert theirs(ours, add_special_tokens=False)["input_ids"] == TOKENIZER.encode(ours).ids
    assert (theirs.eos_token, theirs.pad_token) == (END, PAD)
    assert theirs.bos_token == config["bos_token"]


def test_a_missing_or_broken_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is missing"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json is no tokenizer"):
        load_tokenizer(tmp_path)


def test_an_unknown_token_is_named() -> None:
    with pytest.raises(KeyError, match="is no token of this tokenizer"):
        token_id(TOKENIZER, "<|nothing|>")

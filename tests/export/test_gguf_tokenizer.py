"""The tokenizer rebuilt from GGUF metadata against the one of transformers and the published one."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoTokenizer

from export.errors import ExportError
from export.formats.gguf_tokenizer import tokenizer_files_from_metadata, tokenizer_from_metadata
from tests.export.tiny_gguf import CONTROL, TEMPLATE, TinyLlama, train_vocabulary

TOKENS, MERGES = train_vocabulary()
METADATA: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.merges": MERGES,
    "tokenizer.ggml.token_type": [3 if token in CONTROL else 1 for token in TOKENS],
    "tokenizer.ggml.bos_token_id": 1,
    "tokenizer.ggml.eos_token_id": 2,
    "tokenizer.ggml.padding_token_id": 0,
}
REBUILT = tokenizer_from_metadata(METADATA)


def published_smollm() -> Tokenizer:
    """As the tokenizer.json that the model's authors publish describes it: digits one by one, then bytes."""
    vocab = {token: index for index, token in enumerate(TOKENS)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[tuple(merge.split()) for merge in MERGES]))
    digits = pre_tokenizers.Digits(individual_digits=True)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [digits, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(CONTROL))
    return tokenizer


@given(st.text())
def test_any_text_survives_the_round_trip(text: str) -> None:
    assert REBUILT.decode(REBUILT.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(alphabet=st.sampled_from("ab 1234\n\tthe٣²中")))
def test_text_is_cut_as_the_published_tokenizer_cuts_it(text: str) -> None:
    assert REBUILT.encode(text).ids == published_smollm().encode(text).ids


def test_transformers_reads_the_same_tokens_from_the_file_where_there_are_no_digits(tmp_path: Path) -> None:
    # With digits transformers differs on purpose: it does not know the "smollm" cutting.
    path = TinyLlama().write(tmp_path / "tiny.gguf")
    theirs = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    fields = gguf.GGUFReader(path).fields
    ours = tokenizer_from_metadata({key: field.contents() for key, field in fields.items()})
    text = "<|im_start|>user\nthe capital of france,  is\n\n\thello naïve 中文 🙂<|im_end|>\n"
    assert ours.encode(text).ids == theirs(text)["input_ids"]


def test_digits_stay_apart_only_where_the_file_says_so() -> None:
    gpt2 = tokenizer_from_metadata({**METADATA, "tokenizer.ggml.pre": "gpt-2"})
    assert REBUILT.encode("the  5").tokens[-3:] != gpt2.encode("the  5").tokens[-3:]


def test_control_tokens_are_whole_special_and_skipped_on_request() -> None:
    encoded = REBUILT.encode("<|im_start|>hello<|im_end|>")
    assert encoded.ids[0] == 1
    assert encoded.ids[-1] == 2
    assert REBUILT.decode(encoded.ids) == "hello"
    assert REBUILT.get_vocab_size() == len(TOKENS)


def test_user_defined_tokens_are_whole_but_not_special() -> None:
    kinds = [
        4 if token == "<|im_end|>" else kind
        for token, kind in zip(TOKENS, METADATA["tokenizer.ggml.token_type"], strict=True)
    ]
    tokenizer = tokenizer_from_metadata({**METADATA, "tokenizer.ggml.token_type": kinds})
    assert tokenizer.decode(tokenizer.encode("a<|im_end|>").ids) == "a<|im_end|>"
    assert tokenizer.encode("<|im_end|>").ids == [2]


def test_the_files_carry_the_names_flags_and_template() -> None:
    files = tokenizer_files_from_metadata({**METADATA, "tokenizer.chat_template": TEMPLATE})
    assert files.chat_template == TEMPLATE
    assert files.config["eos_token"] == "<|im_end|>"
    assert files.config["bos_token"] == "<|im_start|>"
    assert files.config["add_bos_token"] is False
    assert Tokenizer.from_str(files.tokenizer).encode("hello").ids == REBUILT.encode("hello").ids
    json.dumps(dict(files.config))


def test_the_begin_flag_is_read_and_llama3_implies_it() -> None:
    said = tokenizer_files_from_metadata({**METADATA, "tokenizer.ggml.add_bos_token": True})
    implied = tokenizer_files_from_metadata({**METADATA, "tokenizer.ggml.pre": "llama-bpe"})
    assert said.config["add_bos_token"] is True
    assert implied.config["add_bos_token"] is True


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.tokens": [*TOKENS[:-1], TOKENS[0]]}, "1 duplicates"),
        ({"tokenizer.ggml.merges": ["ab"]}, "holds 'ab'; a merge is two pieces"),
        ({"tokenizer.ggml.eos_token_id": None}, "eos_token_id is missing"),
    ],
)
def test_a_broken_vocabulary_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        tokenizer_files_from_metadata(METADATA | change)

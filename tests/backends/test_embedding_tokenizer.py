"""The tokenizer for embeddings: ids, padding, and what is refused."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from backends.embedding_tokenizer.texts import TextEncoder, TextError

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[", "]", "SEP", "a", "b"]


@pytest.fixture
def encoder() -> TextEncoder:
    tokenizer = Tokenizer(
        models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.add_special_tokens(WORDS[:4])
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    tokenizer.enable_truncation(4)  # as files of checkpoints have it: not for us
    tokenizer.enable_padding(length=64)
    return TextEncoder(tokenizer, max_length=20, pad=0)


def test_rows_are_padded_behind_to_a_bucket(encoder: TextEncoder) -> None:
    rows = encoder.encode([b"a b", b"a"])
    assert rows.input_ids.shape == rows.attention_mask.shape == (2, 16)
    assert rows.input_ids[:, :5].tolist() == [[1, 7, 8, 2, 0], [1, 7, 2, 0, 0]]
    assert rows.attention_mask.sum(1).tolist() == rows.num_tokens.tolist() == [4, 3]
    assert (rows.attention_mask[:, 5:] == 0).all()


def test_no_row_is_padded_beyond_what_the_model_reads(encoder: TextEncoder) -> None:
    assert encoder.encode([b"a " * 17]).input_ids.shape == (1, 20)


def test_control_tokens_in_a_text_are_what_they_spell(encoder: TextEncoder) -> None:
    assert encoder.encode([b"[SEP]"]).input_ids[0, :5].tolist() == [1, 4, 6, 5, 2]


def test_a_long_text_is_an_error_unless_cutting_it_is_asked_for(encoder: TextEncoder) -> None:
    long = b"a " * 30
    with pytest.raises(TextError, match=r"^invalid: text_input: 32 tokens were given; .* up to 20"):
        encoder.encode([b"a", long])
    cut = encoder.encode([long], truncate=True)
    assert cut.num_tokens.tolist() == [20]
    assert cut.input_ids[0, [0, -1]].tolist() == [1, 2]
    with pytest.raises(TextError):
        encoder.encode([long])  # cutting is no state that stays


@pytest.mark.parametrize(("text", "sentence"), [(b"", "empty"), (b" \n", "empty"), (b"\xff", "not UTF-8")])
def test_texts_without_tokens_and_other_bytes_are_refused(
    encoder: TextEncoder, text: bytes, sentence: str
) -> None:
    with pytest.raises(TextError, match=sentence):
        encoder.encode([text])


def test_types_are_those_of_the_graph(encoder: TextEncoder) -> None:
    rows = encoder.encode([b"a"])
    assert (rows.input_ids.dtype, rows.num_tokens.dtype) == (np.int64, np.int32)

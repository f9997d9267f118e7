"""From texts to the padded token ids that an embedder reads."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

BUCKET = 16  # requests of similar length get equal shapes, which Triton can put together
MAX_BYTES = 1 << 20  # of one text


class TextError(ValueError):
    """A text that can't be read; the message is `CODE: FIELD: MESSAGE`."""

    def __init__(self, message: str) -> None:
        super().__init__(f"invalid: text_input: {message}")


@dataclass(frozen=True)
class TokenRows:
    """Token ids and mask (N, T) as int64, and how many tokens each row has (N,) as int32."""

    input_ids: npt.NDArray[np.int64]
    attention_mask: npt.NDArray[np.int64]
    num_tokens: npt.NDArray[np.int32]


class TextEncoder:
    """One model's tokenizer, with the tokens that it puts around a text.

    A client's words are never control tokens: `[SEP]` is what it spells.
    """

    def __init__(self, tokenizer: Tokenizer, *, max_length: int, pad: int) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # tokenizers' name for "as ordinary text"
        self._tokenizer = tokenizer
        self._around = tokenizer.num_special_tokens_to_add(is_pair=False)
        self.max_length = max_length
        self.pad = pad

    def encode(self, texts: Sequence[bytes], *, truncate: bool = False) -> TokenRows:
        """The rows of `texts`; TextError for one that is empty, no UTF-8 or, unless `truncate`, too long."""
        if truncate:
            self._tokenizer.enable_truncation(self.max_length)
        try:
            encoded = self._tokenizer.encode_batch([self._text(text) for text in texts])
        finally:
            self._tokenizer.no_truncation()
        rows = [encoding.ids for encoding in encoded]
        for row in rows:
            self._check(row)
        return padded(rows, self.pad, self.max_length)

    def _text(self, text: bytes) -> str:
        if len(text) > MAX_BYTES:
            raise TextError(f"{len(text)} bytes were given, at most {MAX_BYTES} are read")
        try:
            return text.decode()
        except UnicodeDecodeError as error:
            raise TextError(f"not UTF-8: {error}") from None

    def _check(self, row: Sequence[int]) -> None:
        if len(row) <= self._around:
            raise TextError("empty; at least one token is needed")
        if len(row) > self.max_length:
            raise TextError(
                f"{len(row)} tokens were given; this model reads up to {self.max_length}: shorten the text, "
                "or send truncate"
            )


def padded(rows: Sequence[Sequence[int]], pad: int, max_length: int) -> TokenRows:
    """Rows of one length, a multiple of BUCKET where the model allows it; padding comes last."""
    lengths = np.array([len(row) for row in rows])
    T = min(-(-int(lengths.max()) // BUCKET) * BUCKET, max_length)
    input_ids = np.full((len(rows), T), pad, np.int64)
    for row, ids in zip(rows, input_ids, strict=True):
        ids[: len(row)] = row
    mask = np.arange(T) < lengths[:, None]
    return TokenRows(input_ids, mask.astype(np.int64), lengths.astype(np.int32))


def load_text_encoder(directory: Path) -> TextEncoder:
    """Reads `tokenizer.json` and `embedding.json` (`max_length`, `pad`); ValueError names a broken file."""
    path = directory / "embedding.json"
    try:
        settings = json.loads(path.read_text(encoding="utf-8"))
        return TextEncoder(
            Tokenizer.from_file(str(directory / "tokenizer.json")),
            max_length=settings["max_length"],
            pad=settings["pad"],
        )
    except OSError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(
            f"{directory} holds no tokenizer for embeddings: {error}; export it again"
        ) from error

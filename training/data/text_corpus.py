"""Documents as a corpus: packed rows in which every token is learned."""

from collections.abc import Iterable, Iterator, Sequence

from tokenizers import Tokenizer

from training.chat import END, ChatFormat
from training.data.batches import Row
from training.data.corpus import PreparedData, Shape, join_until, pad_all, take_tokens
from training.data.packing import PackedBatches
from training.tokenizer import token_id


class TextCorpus:
    """Documents to train on and documents held out, none empty."""

    def __init__(self, kept: Sequence[str], held_out: Sequence[str]) -> None:
        self._kept = kept
        self._held_out = held_out

    def texts(self, chat: ChatFormat) -> Iterable[str]:
        """The training documents."""
        return iter(self._kept)

    def prepare(self, tokenizer: Tokenizer, shape: Shape) -> PreparedData:
        """Packed training rows; the held-out documents are packed alike, the last row is shorter."""
        rows = take_tokens(
            pack(_encode(self._held_out, tokenizer), shape.max_tokens), shape.validation_tokens
        )
        return PreparedData(
            batches=PackedBatches(
                _encode(self._kept, tokenizer),
                length=shape.max_tokens,
                batch_size=shape.batch_size,
                seed=shape.seed,
            ),
            validation=pad_all(rows, tokenizer, batch_size=shape.batch_size),
            held_out=join_until((document + END for document in self._held_out), tokenizer),
            summary=f"{len(self._kept):,} documents to train on, {len(self._held_out):,} held out",
        )


def _encode(documents: Sequence[str], tokenizer: Tokenizer) -> list[list[int]]:
    """Token ids of each document and the end token behind them."""
    end = token_id(tokenizer, END)
    return [[*e.ids, end] for e in tokenizer.encode_batch(documents, add_special_tokens=False)]


def pack(documents: Sequence[Sequence[int]], length: int) -> Iterator[Row]:
    """The documents joined, as rows of `length` inputs and the target after them; the last may be shorter."""
    stream = [token for document in documents for token in document]
    for start in range(0, len(stream) - 1, length):
        ids = stream[start : start + length + 1]
        yield ids, [True] * len(ids)

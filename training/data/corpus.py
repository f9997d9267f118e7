"""What every kind of data gives to training and evaluation: a corpus, and what a tokenizer makes of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from tokenizers import Tokenizer

from training.chat import ChatFormat
from training.data.batches import Batch, Batches, Row, pad_rows
from training.data.case import Case

HELD_OUT_TOKENS = 10_000  # of held_out.txt, where there are as many


@dataclass(frozen=True)
class Shape:
    """How data are cut: rows of up to `max_tokens` inputs, `batch_size` of them, drawn from `seed`.

    `validation_tokens` bounds the inputs of the validation batches, `num_cases` (None: all there are) the
    cases of each test set.
    """

    batch_size: int
    max_tokens: int
    seed: int
    validation_tokens: int
    num_cases: int | None = None


@dataclass(frozen=True)
class PreparedData:
    """Training batches, and of what is held out: validation batches, test sets by name, and text.

    `held_out` is the validation split as the model sees it, marks included; `summary` is a sentence on the
    split.
    """

    batches: Batches
    validation: Sequence[Batch]
    held_out: str
    summary: str
    test_sets: dict[str, Sequence[Case]] = field(default_factory=dict)


class Corpus(Protocol):
    """Data that a model can be trained on, divided into what is learned and what is held out."""

    def texts(self, chat: ChatFormat) -> Iterable[str]:
        """What the tokenizer learns from: training text only."""
        ...

    def prepare(self, tokenizer: Tokenizer, shape: Shape) -> PreparedData:
        """The data as token ids."""
        ...


def pad_all(rows: Sequence[Row], tokenizer: Tokenizer, *, batch_size: int) -> list[Batch]:
    """The rows in batches of like length."""
    ordered = sorted(rows, key=lambda row: len(row[0]))
    starts = range(0, len(ordered), batch_size)
    return [pad_rows(ordered[start : start + batch_size], tokenizer) for start in starts]


def take_tokens(rows: Iterable[Row], most: int) -> list[Row]:
    """The first rows, until they have `most` inputs; at least one."""
    taken, total = list[Row](), 0
    for row in rows:
        total += len(row[0]) - 1
        if taken and total > most:
            break
        taken.append(row)
    return taken


def join_until(texts: Iterable[str], tokenizer: Tokenizer, *, num_tokens: int = HELD_OUT_TOKENS) -> str:
    """The first texts joined, until they have `num_tokens` tokens or there are no more."""
    joined, total = list[str](), 0
    for text in texts:
        joined.append(text)
        total += len(tokenizer.encode(text, add_special_tokens=False).ids)
        if total >= num_tokens:
            break
    return "".join(joined)

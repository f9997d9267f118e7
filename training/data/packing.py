"""Documents joined into rows without padding; every token is learned once an epoch."""

import math
from collections.abc import Sequence
from functools import lru_cache
from random import Random

import numpy as np
import torch
from numpy.typing import NDArray

from training.data.batches import Batch

Tokens = NDArray[np.int32]


class PackedBatches:
    """Rows of `length` tokens, cut from one endless stream: all documents in an order of each epoch's own.

    A row's last target is the first input of the next in the stream, so no token is wasted and none learned
    twice. A document ends in its end token and the next begins behind it in the same row: the model sees the
    one before as context, the end token tells it that this is over, and a document's first token is learned
    as what follows an end. Within about an epoch the rows come shuffled.
    """

    def __init__(
        self, documents: Sequence[Sequence[int]], *, length: int, batch_size: int, seed: int
    ) -> None:
        self._documents = [np.array(document, np.int32) for document in documents]
        self._num_tokens = sum(len(document) for document in documents)
        self._length = length
        self._batch_size = batch_size
        self._seed = seed
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)
        self._order = lru_cache(maxsize=2)(self._make_order)

    @property
    def steps_per_epoch(self) -> int:
        """Steps until every token has come once."""
        return math.ceil(self._num_tokens / (self._length * self._batch_size))

    def __getitem__(self, step: int) -> Batch:
        """The batch of `step`, from 0 without end."""
        first = step * self._batch_size
        rows = np.stack([self._row(number) for number in range(first, first + self._batch_size)])
        tokens = torch.from_numpy(rows.astype(np.int64))  # (B, T + 1)
        valid = torch.ones(len(tokens), self._length, dtype=torch.bool)
        return Batch(tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous(), valid)

    def _row(self, number: int) -> Tokens:
        block, place = divmod(number, self._rows_per_block)
        row = block * self._rows_per_block + self._order(block)[place]
        return self._read(row * self._length, self._length + 1)

    @property
    def _rows_per_block(self) -> int:
        return max(1, self._num_tokens // self._length)

    def _make_order(self, block: int) -> list[int]:
        rows = list(range(self._rows_per_block))
        Random(f"{self._seed}/rows/{block}").shuffle(rows)
        return rows

    def _read(self, start: int, count: int) -> Tokens:
        """`count` tokens of the stream from `start`, through as many epochs as it takes."""
        parts: list[Tokens] = []
        while count > 0:
            epoch, place = divmod(start, self._num_tokens)
            part = self._epoch(epoch)[place : place + count]
            parts.append(part)
            start, count = start + len(part), count - len(part)
        return np.concatenate(parts)

    def _make_epoch(self, epoch: int) -> Tokens:
        order = list(self._documents)
        Random(f"{self._seed}/documents/{epoch}").shuffle(order)
        return np.concatenate(order)

"""Conversations as padded batches of token ids, each batch a pure function of the step."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from random import Random
from typing import Protocol

import torch
from tokenizers import Tokenizer
from torch import Tensor

from training.chat import Conversation, segments
from training.tokenizer import chat_format, token_id

IGNORED = -100  # cross entropy's default: no loss here
BATCHES_PER_GROUP = 16


class Source(Protocol):
    """Training conversations by number, without end; the same number is always the same conversation.

    After `epoch_length` of them each has come once.
    """

    @property
    def epoch_length(self) -> int:
        """Conversations in one epoch."""
        ...

    def conversation(self, index: int) -> Conversation:
        """Conversation number `index`, from 0."""
        ...


@dataclass(frozen=True)
class Batch:
    """Inputs and what should follow them, (B, T) both; `targets` are IGNORED where nothing is learned."""

    input_ids: Tensor
    targets: Tensor
    valid: Tensor

    @cached_property
    def num_learned(self) -> int:
        """Tokens that the loss counts."""
        return int((self.targets != IGNORED).sum())

    @cached_property
    def num_valid(self) -> int:
        """Tokens that are not padding."""
        return int(self.valid.sum())

    def part(self, index: int, count: int) -> "Batch":
        """Rows index, index + count, …: one of `count` parts; without any, a row in which nothing counts."""
        if count == 1:
            return self
        if index >= len(self.input_ids):
            targets, valid = torch.full_like(self.targets[:1], IGNORED), torch.zeros_like(self.valid[:1])
            return Batch(self.input_ids[:1], targets, valid)
        rows = slice(index, None, count)
        return Batch(self.input_ids[rows], self.targets[rows], self.valid[rows])

    def to(self, device: torch.device) -> "Batch":
        """The same batch on `device`."""
        return Batch(self.input_ids.to(device), self.targets.to(device), self.valid.to(device))


class Batches(Protocol):
    """The batch of every training step, each a pure function of the step, so a position is one number."""

    @property
    def steps_per_epoch(self) -> int:
        """Steps after which all of the training split has been seen once."""
        ...

    def __getitem__(self, step: int) -> Batch:
        """The batch of `step`, from 0 without end."""
        ...


class PaddedBatches:
    """Conversations, padded; a group of batches is sorted by length, cut up, then shuffled.

    A row longer than `max_tokens` is cut there.
    """

    def __init__(
        self,
        source: Source,
        tokenizer: Tokenizer,
        *,
        batch_size: int,
        seed: int,
        max_tokens: int | None = None,
    ) -> None:
        self._source = source
        self._tokenizer = tokenizer
        self._batch_size = batch_size
        self._seed = seed
        self._max_tokens = max_tokens
        self._group = lru_cache(maxsize=1)(self._make_group)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of the groups within which every conversation has come once."""
        group = self._batch_size * BATCHES_PER_GROUP
        return math.ceil(self._source.epoch_length / group) * BATCHES_PER_GROUP

    def __getitem__(self, step: int) -> Batch:
        """The batch of `step`, from 0."""
        group, place = divmod(step, BATCHES_PER_GROUP)
        return self._group(group)[place]

    def _make_group(self, group: int) -> list[Batch]:
        size = self._batch_size * BATCHES_PER_GROUP
        indices = range(group * size, (group + 1) * size)
        conversations = [self._source.conversation(index) for index in indices]
        rows = cut_rows(encode(conversations, self._tokenizer), self._max_tokens)
        rows.sort(key=lambda row: len(row[0]))
        starts = list(range(0, size, self._batch_size))
        Random(f"{self._seed}/{group}").shuffle(starts)
        return [pad_rows(rows[start : start + self._batch_size], self._tokenizer) for start in starts]


Row = tuple[list[int], list[bool]]  # token ids, and whether each is learned


def encode(conversations: Sequence[Conversation], tokenizer: Tokenizer) -> list[Row]:
    """The token ids of each conversation and which of them the model learns to say."""
    chat = chat_format(tokenizer)
    pieces = [list(segments(conversation, chat)) for conversation in conversations]
    texts = [text for row in pieces for text, _ in row]
    encodings = iter(tokenizer.encode_batch(texts, add_special_tokens=False))
    rows: list[Row] = []
    for row in pieces:
        ids, learned = [], []
        for _, is_learned in row:
            piece = next(encodings).ids
            ids += piece
            learned += [is_learned] * len(piece)
        rows.append((ids, learned))
    return rows


def cut_rows(rows: Sequence[Row], max_tokens: int | None) -> list[Row]:
    """Rows of at most `max_tokens` inputs and the target after the last."""
    end = None if max_tokens is None else max_tokens + 1
    return [(ids[:end], learned[:end]) for ids, learned in rows]


def pad_rows(rows: Sequence[Row], tokenizer: Tokenizer) -> Batch:
    """Rows of n+1 tokens as inputs and targets, (B, T) with T the longest row's n."""
    T = max(len(ids) for ids, _ in rows) - 1
    input_ids = torch.full((len(rows), T), token_id(tokenizer, chat_format(tokenizer).pad))
    targets = torch.full((len(rows), T), IGNORED)
    valid = torch.zeros(len(rows), T, dtype=torch.bool)
    for i, (ids, learned) in enumerate(rows):
        n = len(ids) - 1
        wanted = [token if keep else IGNORED for token, keep in zip(ids, learned, strict=True)]
        input_ids[i, :n] = torch.tensor(ids[:-1])
        targets[i, :n] = torch.tensor(wanted[1:])
        valid[i, :n] = True
    return Batch(input_ids, targets, valid)

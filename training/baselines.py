"""What counting alone predicts: a unigram and a bigram model, which a trained model has to beat."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.data.batches import IGNORED, Batch
from training.data.corpus import PreparedData

Ids = NDArray[np.int64]
Probabilities = NDArray[np.float64]


@dataclass(frozen=True)
class Baselines:
    """Cross entropy per learned token of the validation batches, in nats."""

    unigram: float
    bigram: float


class NGrams:
    """How often a token came, and how often after which, with Witten-Bell smoothing.

    With c a count, T the number of different tokens that followed, V the vocabulary's size:
    P(w) = (c(w) + T/V) / (Σc + T) and P(w|h) = (c(h,w) + T(h)·P(w)) / (c(h) + T(h)); after an h that never
    came, P(w). Source: Witten and Bell, 1991, interpolated as in Chen and Goodman, 1999.
    """

    def __init__(self, previous: Ids, tokens: Ids, *, vocab_size: int) -> None:
        """`tokens` (N,), each with the token before it, `previous` (N,)."""
        self._vocab_size = vocab_size
        counts = np.bincount(tokens, minlength=vocab_size)
        kinds = np.count_nonzero(counts)
        self._alone: Probabilities = (counts + kinds / vocab_size) / (counts.sum() + kinds)
        self._pairs, self._pair_counts = np.unique(previous * vocab_size + tokens, return_counts=True)
        self._contexts = np.bincount(previous, minlength=vocab_size)
        self._kinds_after = np.bincount(self._pairs // vocab_size, minlength=vocab_size)

    def unigram(self, tokens: Ids) -> Probabilities:
        """P(w) of each of `tokens` (N,)."""
        alone: Probabilities = self._alone[tokens]
        return alone

    def bigram(self, previous: Ids, tokens: Ids) -> Probabilities:
        """P(w|h) of each of `tokens` (N,) after `previous` (N,)."""
        kinds, alone = self._kinds_after[previous], self._alone[tokens]
        came = self._contexts[previous] > 0
        smoothed = self._count_pairs(previous, tokens) + kinds * alone
        after: Probabilities = np.divide(
            smoothed, self._contexts[previous] + kinds, out=alone.copy(), where=came
        )
        return after

    def _count_pairs(self, previous: Ids, tokens: Ids) -> Ids:
        pairs = previous * self._vocab_size + tokens
        places = np.searchsorted(self._pairs, pairs).clip(max=len(self._pairs) - 1)
        counts: Ids = np.where(self._pairs[places] == pairs, self._pair_counts[places], 0)
        return counts


def measure_baselines(data: PreparedData, *, vocab_size: int) -> Baselines:
    """Both models, counted on an epoch of training batches, on the validation batches.

    They learn from and are asked for the same tokens as the trained model: those with a target.
    """
    steps = data.batches.steps_per_epoch
    previous, tokens = learned_pairs(data.batches[step] for step in range(steps))
    counted = NGrams(previous, tokens, vocab_size=vocab_size)
    before, asked = learned_pairs(data.validation)
    return Baselines(
        unigram=float(-np.log(counted.unigram(asked)).mean()),
        bigram=float(-np.log(counted.bigram(before, asked)).mean()),
    )


def learned_pairs(batches: Iterable[Batch]) -> tuple[Ids, Ids]:
    """The token before each learned one, and the learned one: (N,) both."""
    previous, tokens = [], []
    for batch in batches:
        learned = batch.targets != IGNORED
        previous.append(batch.input_ids[learned].numpy())
        tokens.append(batch.targets[learned].numpy())
    return np.concatenate(previous), np.concatenate(tokens)

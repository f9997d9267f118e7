"""Unigram and bigram with Witten-Bell smoothing, against figures by hand."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.baselines import NGrams, learned_pairs, measure_baselines
from training.data.batches import IGNORED, Batch
from training.data.corpus import PreparedData

A, B, C, D = range(4)
COUNTED = NGrams(np.array([A, B, A, A]), np.array([B, A, A, B]), vocab_size=4)  # of "abaab"


def batch(inputs: list[int], targets: list[int]) -> Batch:
    valid = torch.ones(1, len(inputs), dtype=torch.bool)
    return Batch(torch.tensor([inputs]), torch.tensor([targets]), valid)


def test_the_unigram_is_that_by_hand() -> None:
    """Four tokens, two kinds: P(w) = (c + 2/4) / (4 + 2)."""
    expected = [Fraction(5, 12), Fraction(5, 12), Fraction(1, 12), Fraction(1, 12)]
    assert COUNTED.unigram(np.arange(4)) == pytest.approx([float(p) for p in expected], abs=1e-15)


def test_the_bigram_is_that_by_hand() -> None:
    """After a: b twice, a once, two kinds: P(w|a) = (c + 2 P(w)) / (3 + 2). After b: a once, one kind."""
    after_a = [Fraction(11, 30), Fraction(17, 30), Fraction(1, 30), Fraction(1, 30)]
    after_b = [Fraction(17, 24), Fraction(5, 24), Fraction(1, 24), Fraction(1, 24)]
    for previous, expected in ((A, after_a), (B, after_b)):
        given = COUNTED.bigram(np.full(4, previous), np.arange(4))
        assert given == pytest.approx([float(p) for p in expected], abs=1e-15)


def test_after_a_token_that_never_came_the_bigram_is_the_unigram() -> None:
    assert (COUNTED.bigram(np.full(4, D), np.arange(4)) == COUNTED.unigram(np.arange(4))).all()


@given(st.lists(st.integers(0, 5), min_size=2, max_size=40), st.integers(0, 5))
def test_probabilities_sum_to_one_whatever_was_counted(tokens: list[int], previous: int) -> None:
    stream, everything = np.array(tokens), np.arange(6)
    counted = NGrams(stream[:-1], stream[1:], vocab_size=6)
    assert counted.unigram(everything).sum() == pytest.approx(1, abs=1e-12)
    assert counted.bigram(np.full(6, previous), everything).sum() == pytest.approx(1, abs=1e-12)
    assert (counted.bigram(np.full(6, previous), everything) > 0).all()


class Twice:
    """An epoch of two steps: "ab" and "aab", of which only what has a target counts."""

    steps_per_epoch = 2

    def __getitem__(self, step: int) -> Batch:
        return (batch([A, B, A], [B, A, IGNORED]), batch([A, A], [A, B]))[step]


def test_only_learned_tokens_are_counted_and_asked_for() -> None:
    previous, tokens = learned_pairs([Twice()[0], Twice()[1]])
    assert (previous.tolist(), tokens.tolist()) == ([A, B, A, A], [B, A, A, B])
    validation = [batch([A, C], [B, IGNORED]), batch([B], [C])]
    data = PreparedData(Twice(), validation, held_out="", summary="")
    measured = measure_baselines(data, vocab_size=4)
    assert measured.unigram == pytest.approx(-(math.log(5 / 12) + math.log(1 / 12)) / 2, abs=1e-12)
    assert measured.bigram == pytest.approx(-(math.log(17 / 30) + math.log(1 / 24)) / 2, abs=1e-12)

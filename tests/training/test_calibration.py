"""Calibration and rank correlation, against definitions written out and known answers."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.calibration import brier_terms, expected_calibration_error, spearman

values = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=2, max_size=30)


def test_the_calibration_error_of_two_bins_is_that_by_hand() -> None:
    """Sorted: .2 .4 | .6 .8; right: no yes | no yes. |.3 - .5| and |.7 - .5|, half of the tokens each."""
    confidence, is_right = torch.tensor([0.2, 0.6, 0.4, 0.8]), torch.tensor([False, False, True, True])
    error = expected_calibration_error(confidence, is_right, num_bins=2)
    assert error == pytest.approx(0.5 * 0.2 + 0.5 * 0.2, abs=1e-7)  # float32 inputs


def test_bins_hold_equally_many_tokens_not_equally_wide_intervals() -> None:
    """With equal widths all but one token would share a bin, and their errors would cancel out."""
    confidence = torch.tensor([0.9, 0.91, 0.98, 0.99])
    is_right = torch.tensor([True, True, False, True])
    assert expected_calibration_error(confidence, is_right, num_bins=4) == pytest.approx(
        (0.1 + 0.09 + 0.98 + 0.01) / 4, abs=1e-7
    )


def test_who_is_right_as_often_as_said_is_calibrated_and_who_boasts_is_not() -> None:
    generator = torch.Generator().manual_seed(0)
    confidence = torch.rand(200_000, generator=generator)
    is_right = torch.rand(200_000, generator=generator) < confidence
    assert expected_calibration_error(confidence, is_right) < 0.01  # noise of a bin: ½/√13,333 = 0.004
    assert expected_calibration_error(confidence.sqrt(), is_right) > 0.1


def test_fewer_tokens_than_bins_are_one_bin_each() -> None:
    assert expected_calibration_error(torch.tensor([0.25]), torch.tensor([True])) == pytest.approx(0.75)


def test_the_brier_score_is_the_squared_distance_to_what_came() -> None:
    probabilities = torch.tensor([[0.7, 0.2, 0.1], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    terms = brier_terms(probabilities, torch.tensor([0, 2, 1]))
    assert terms.tolist() == pytest.approx([0.3**2 + 0.2**2 + 0.1**2, 0, 2], abs=1e-6)


def naive_spearman(pairs: list[tuple[int, int]]) -> float:
    """Pearson's correlation of ranks counted one by one: those below, and half of the equal ones."""
    ranks = [
        [sum(b < a for b in column) + (sum(b == a for b in column) + 1) / 2 for a in column]
        for column in zip(*pairs, strict=True)
    ]
    mean = (len(pairs) + 1) / 2
    x, y = ([rank - mean for rank in column] for column in ranks)
    dot = sum(p * q for p, q in zip(x, y, strict=True))
    return dot / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))


@given(values)
def test_spearman_is_the_correlation_of_mean_ranks(pairs: list[tuple[int, int]]) -> None:
    a, b = (torch.tensor(column, dtype=torch.float64) for column in zip(*pairs, strict=True))
    if a.unique().numel() == 1 or b.unique().numel() == 1:
        assert spearman(a, b) is None
    else:
        assert spearman(a, b) == pytest.approx(naive_spearman(pairs), abs=1e-12)


def test_any_rising_function_has_rank_correlation_one() -> None:
    a = torch.tensor([3.0, -1.0, 0.5, 10.0])
    assert spearman(a, a.exp()) == pytest.approx(1)
    assert spearman(a, -a.exp()) == pytest.approx(-1)

"""Sampling against a slow reference in float64, written from the definitions."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.causal_lm.requests.request import GenerationRequest, SamplingParameters
from backends.causal_lm.sequences.drawing import largest, place
from backends.causal_lm.sequences.sampling import NonFiniteLogitsError, Sampler

VOCAB_SIZE = 300
EOS = (0, 7)
PROMPT = [3, 3, 250]


def sampler(parameters: SamplingParameters, **values: object) -> Sampler:
    request = GenerationRequest("", (np.array(PROMPT),), 100, sampling=parameters, **values)  # type: ignore[arg-type]
    return Sampler(request, EOS)


def logits_of(seed: int, number: int = 1) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(0, 3, (number, VOCAB_SIZE)).astype(np.float32)


def draw(sampler: Sampler, rows: NDArray[np.float32]) -> list[int]:
    return [sampler.choose(row, int(row.argmax())).token for row in rows]


def reference_distribution(row: list[float], parameters: SamplingParameters) -> dict[int, float]:
    """Token → probability, with Python floats and full sorts."""
    weights = {i: math.exp((x - max(row)) / parameters.temperature) for i, x in enumerate(row)}
    ranked = sorted(weights, key=lambda i: (-weights[i], i))
    ranked = ranked[: parameters.top_k or None]
    total, running, nucleus = sum(weights[i] for i in ranked), 0.0, []
    for i in ranked:
        if running >= parameters.top_p * total:
            break
        nucleus.append(i)
        running += weights[i]
    kept = [i for i in nucleus if weights[i] >= parameters.min_p * weights[ranked[0]]]
    mass = sum(weights[i] for i in kept)
    return {i: weights[i] / mass for i in kept}


def reference_draws(rows: NDArray[np.float32], parameters: SamplingParameters) -> list[int]:
    """Inverse of the cumulative distribution by token id, one uniform number of the seed's Philox each."""
    uniforms = np.random.Generator(np.random.Philox(key=parameters.seed)).random(len(rows))
    tokens = []
    for row, uniform in zip(rows.tolist(), uniforms, strict=True):
        running = 0.0
        distribution = reference_distribution(row, parameters)
        for token in sorted(distribution):
            running += distribution[token]
            if running > uniform:
                break
        tokens.append(token)
    return tokens


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.builds(
        SamplingParameters,
        temperature=st.floats(0.2, 2.0),
        top_k=st.sampled_from([0, 1, 3, 40, 299, 1000]),
        top_p=st.sampled_from([1.0, 0.99, 0.9, 0.5, 0.01]),
        min_p=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
        seed=st.integers(0, 2**64 - 1),
    )
)
def test_draws_are_those_of_the_reference(parameters: SamplingParameters) -> None:
    # float32 weights move a boundary by about 1e-7 of the mass: no draw of these falls so near one.
    rows = logits_of(parameters.seed % 1000, 6)
    assert draw(sampler(parameters), rows) == reference_draws(rows, parameters)


def test_no_token_of_weight_zero_is_ever_drawn() -> None:
    row = np.full((1, VOCAB_SIZE), -200.0, np.float32)
    row[0, [70, 191]] = 5.0, 4.0
    tokens = draw(sampler(SamplingParameters(temperature=1.0, seed=3)), np.repeat(row, 500, 0))
    assert set(tokens) == {70, 191}


@pytest.mark.parametrize("uniform", [0.0, 0.3, 1.0 - 2**-53, 1.0])
@pytest.mark.parametrize("positive", [[0], [63], [64], [100, 290], [128, 129, 130]])
def test_the_ends_of_the_unit_interval_fall_on_positive_weights(uniform: float, positive: list[int]) -> None:
    weights = np.zeros(VOCAB_SIZE, np.float32)
    weights[positive] = 0.1
    expected = positive[min(int(uniform * len(positive)), len(positive) - 1)]
    assert place(weights, uniform) == expected


def test_frequencies_of_many_draws_follow_the_distribution() -> None:
    parameters = SamplingParameters(temperature=1.5, top_k=12, seed=11)
    row = logits_of(1)
    number = 20_000
    counts = np.bincount(draw(sampler(parameters), np.repeat(row, number, 0)), minlength=VOCAB_SIZE)
    expected = reference_distribution(row[0].tolist(), parameters)
    chi_square = sum((counts[i] - number * p) ** 2 / (number * p) for i, p in expected.items())
    assert counts.sum() == sum(counts[i] for i in expected)
    assert chi_square < 31.3  # the 0.1 % quantile for 11 degrees of freedom


def test_the_same_seed_draws_the_same_and_another_draws_otherwise() -> None:
    rows = logits_of(2, 40)
    tokens = [draw(sampler(SamplingParameters(temperature=1.0, seed=seed)), rows) for seed in (5, 5, 6)]
    assert tokens[0] == tokens[1] != tokens[2]


def test_a_row_is_drawn_alike_from_any_place_of_a_batch() -> None:
    rows = logits_of(3, 16)
    parameters = SamplingParameters(temperature=0.9, top_p=0.95, top_k=50, seed=9)
    for row in range(16):
        assert draw(sampler(parameters), rows[row : row + 1]) == draw(
            sampler(parameters), rows[row : row + 1].copy()
        )


@pytest.mark.parametrize("temperature", [0.0, 1e-9])
def test_the_coldest_temperatures_take_the_largest_logit(temperature: float) -> None:
    rows = logits_of(4, 20)
    assert draw(sampler(SamplingParameters(temperature=temperature)), rows) == rows.argmax(1).tolist()


def test_penalties_follow_their_definitions() -> None:
    parameters = SamplingParameters(repetition_penalty=1.7, presence_penalty=0.4, frequency_penalty=0.3)
    rows = logits_of(5, 30) / 4
    counts = dict.fromkeys(range(VOCAB_SIZE), 0)
    chosen = draw(sampler(parameters), rows)
    for token, row in zip(chosen, rows.astype(np.float64), strict=True):
        expected = row.copy()
        for i in range(VOCAB_SIZE):
            if counts[i] or i in PROMPT:
                expected[i] = row[i] / 1.7 if row[i] > 0 else row[i] * 1.7
            expected[i] -= (0.4 + 0.3 * counts[i]) if counts[i] else 0.0
        assert token == expected.argmax()
        counts[token] += 1
    assert chosen != rows.argmax(1).tolist()


def test_a_bias_is_added_to_its_token_only() -> None:
    row = logits_of(6)
    assert draw(sampler(SamplingParameters(logit_bias={17: 100.0, 18: 99.0})), row) == [17]
    best = int(row.argmax())
    second = int(np.argsort(row[0])[-2])
    assert draw(sampler(SamplingParameters(logit_bias={best: -100.0})), row) == [second]


def test_end_of_sequence_is_barred_until_the_least_number_of_tokens() -> None:
    row = logits_of(7)
    row[0, 7] = 50.0
    rows = np.repeat(row, 4, 0)
    assert [token in EOS for token in draw(sampler(SamplingParameters(), min_tokens=3), rows)] == [
        False
    ] * 3 + [True]


def test_choosing_leaves_the_logits_as_they_were() -> None:
    rows = logits_of(8)
    before = rows.copy()
    draw(sampler(SamplingParameters(1.0, repetition_penalty=2.0, logit_bias={1: 5.0}), min_tokens=2), rows)
    assert np.array_equal(rows, before)


def test_log_probs_are_of_the_raw_distribution() -> None:
    row = logits_of(9)[0]
    parameters = SamplingParameters(temperature=0.3, logit_bias={17: 100.0})
    choice = sampler(parameters, return_log_probs=True, num_log_probs=5).choose(row, int(row.argmax()))
    exact = row.astype(np.float64) - np.log(np.exp(row.astype(np.float64)).sum())
    assert choice.token == 17
    assert choice.log_prob == pytest.approx(exact[17], abs=1e-5)  # float32 exponentials
    assert list(choice.alternatives) == np.argsort(-exact)[:5].tolist()
    assert list(choice.alternatives.values()) == pytest.approx(np.sort(exact)[::-1][:5], abs=1e-5)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_logits_that_are_not_numbers_are_an_error(value: float) -> None:
    row = logits_of(10)[0]
    row[5] = value
    with pytest.raises(NonFiniteLogitsError, match="largest logit"):
        sampler(SamplingParameters()).choose(row, int(row.argmax()))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=400), st.integers(1, 400))
def test_the_largest_are_found_with_ties_in_order(values: list[int], count: int) -> None:
    row = np.array(values, np.float32)
    expected = sorted(range(len(values)), key=lambda i: (-values[i], i))[:count]
    assert largest(row, count).tolist() == expected

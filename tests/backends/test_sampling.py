"""Sampling against a slow reference in float64, written from the definitions."""

import math
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from backends.causal_lm.requests.request import GenerationRequest, SamplingParameters
from backends.causal_lm.sequences.drawing import largest, place, surely_kept, truncated, weights_of
from backends.causal_lm.sequences.sampling import NonFiniteLogitsError, Sampler

VOCAB_SIZE = 300
EOS = (0, 7)
PROMPT = [3, 3, 250]


def sampler(parameters: SamplingParameters, **values: object) -> Sampler:
    constraint = values.pop("constraint", None)
    request = GenerationRequest("", (np.array(PROMPT),), 100, sampling=parameters, **values)  # type: ignore[arg-type]
    return Sampler(request, EOS, constraint=constraint)  # type: ignore[arg-type]


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
@pytest.mark.parametrize("positive", [[0], [255], [256], [255, 256], [100, 290], [128, 129, 130], [299]])
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
    rows = logits_of(5, 250) / 4
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
    assert len(set(chosen)) > 130  # more than there was room for, twice


def test_a_request_takes_no_memory_for_tokens_that_it_might_say() -> None:
    request = GenerationRequest(
        "", (np.array(PROMPT),), 2**31 - 1, sampling=SamplingParameters(repetition_penalty=1.1)
    )
    tracemalloc.start()
    try:
        Sampler(request, EOS)
        assert tracemalloc.get_traced_memory()[1] < 100_000
    finally:
        tracemalloc.stop()


@settings(deadline=None, derandomize=True, max_examples=60)
@given(
    st.builds(
        SamplingParameters,
        # Powers of two and whole logits: equals stay equal, and the first of them is to be chosen.
        repetition_penalty=st.sampled_from([0.5, 1.0, 2.0]),
        presence_penalty=st.sampled_from([-1.0, 0.0, 1.0]),
        frequency_penalty=st.sampled_from([-0.5, 0.0, 1.0]),
        logit_bias=st.dictionaries(st.integers(0, 19), st.integers(-3, 3).map(float), max_size=4),
    ),
    st.integers(0, 1000),
)
def test_the_first_of_the_largest_is_that_of_the_whole_adjusted_row(
    parameters: SamplingParameters, seed: int
) -> None:
    rows = np.full((25, VOCAB_SIZE), -50.0, np.float32)
    rows[:, :20] = np.random.default_rng(seed).integers(-4, 5, (25, 20))
    counts = np.zeros(VOCAB_SIZE)
    seen = np.isin(np.arange(VOCAB_SIZE), PROMPT)
    for token, row in zip(draw(sampler(parameters), rows), rows.astype(np.float64), strict=True):
        penalty = np.where(seen, parameters.repetition_penalty, 1)
        expected = np.where(row > 0, row / penalty, row * penalty)
        expected -= (counts > 0) * parameters.presence_penalty + counts * parameters.frequency_penalty
        for i, bias in parameters.logit_bias.items():
            expected[i] += bias
        assert token == expected.argmax()
        counts[token] += 1
        seen[token] = True


def test_draws_are_of_the_adjusted_row() -> None:
    row = logits_of(12)
    best = int(row.argmax())
    parameters = SamplingParameters(0.9, repetition_penalty=1.5, logit_bias={best: -100.0, 40: 2.0}, seed=8)
    adjusted = row[0].astype(np.float64)
    for i in {*PROMPT}:
        adjusted[i] *= 1 / 1.5 if adjusted[i] > 0 else 1.5
    adjusted[best] -= 100.0
    adjusted[40] += 2.0
    adjusted[list(EOS)] = -np.inf
    for seed in range(40):  # the first draw of each: later ones are penalised by what was drawn
        wanted = replace(parameters, seed=seed)
        expected = reference_draws(adjusted[None], wanted)
        assert draw(sampler(wanted, min_tokens=1), row) == expected


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


class Only:
    """Allows the same tokens always, and counts how often it had to tell them all."""

    ends = False

    def __init__(self, tokens: NDArray[np.bool_]) -> None:
        self._tokens, self.told = tokens, 0

    def forced(self) -> None:
        return None

    def allows(self, token: int) -> bool:
        return bool(self._tokens[token])

    def restrict(self, row: NDArray[np.float32]) -> None:
        self.told += 1
        row[~self._tokens] = -np.inf

    def advance(self, token: int) -> None:
        assert self._tokens[token]


@pytest.mark.parametrize(
    "parameters",
    [
        SamplingParameters(1.5, seed=1),
        SamplingParameters(1.0, top_k=7, seed=2),
        SamplingParameters(1.0, top_p=0.9, seed=3),
        SamplingParameters(1.0, top_p=0.6, seed=4),
        SamplingParameters(1.2, min_p=0.1, seed=5),
        SamplingParameters(1.2, top_k=9, top_p=0.8, min_p=0.05, seed=6),
    ],
)
def test_draws_under_a_constraint_follow_the_distribution_of_what_it_allows(
    parameters: SamplingParameters,
) -> None:
    row, number = logits_of(20 + parameters.seed)[0], 6000
    constraint = Only(np.random.default_rng(parameters.seed).random(VOCAB_SIZE) < 0.5)
    tokens = draw(sampler(parameters, constraint=constraint), np.repeat(row[None], number, 0))
    allowed = np.where(constraint._tokens, row, -np.inf)
    expected = {i: p for i, p in reference_distribution(allowed.tolist(), parameters).items() if p}
    counts = np.bincount(tokens, minlength=VOCAB_SIZE)
    assert set(np.flatnonzero(counts)) <= set(expected)
    often = {i for i, p in expected.items() if number * p >= 5}
    cells = [(counts[i], number * expected[i]) for i in often]
    if rare := set(expected) - often:
        cells.append((sum(counts[i] for i in rare), number * sum(expected[i] for i in rare)))
    chi_square = sum((count - mean) ** 2 / mean for count, mean in cells)
    freedom = len(cells) - 1
    # The 0.1 % quantile, by Wilson and Hilferty.
    assert chi_square < freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
    assert constraint.told < number


def test_what_is_allowed_is_drawn_however_unlikely_it_is() -> None:
    row = np.full(VOCAB_SIZE, -400.0, np.float32)
    row[:2], row[[50, 60]] = 0.0, (-150.0, -151.0)
    constraint = Only(np.arange(VOCAB_SIZE) >= 2)
    tokens = draw(
        sampler(SamplingParameters(1.0, seed=1), constraint=constraint), np.repeat(row[None], 400, 0)
    )
    assert set(tokens) == {50, 60}
    assert 250 < tokens.count(50) < 335  # of 400 draws at 0.731, four deviations to each side


@settings(deadline=None, derandomize=True, max_examples=300)
@given(
    st.lists(st.integers(0, 12), min_size=2, max_size=12),
    st.data(),
    st.builds(
        SamplingParameters,
        temperature=st.just(1.0),
        top_k=st.integers(0, 6),
        top_p=st.sampled_from([1.0, 0.9, 0.6]),
        min_p=st.sampled_from([0.0, 0.1]),
    ),
)
def test_what_is_surely_kept_is_kept_whatever_else_is_barred(
    heights: list[int], data: st.DataObject, parameters: SamplingParameters
) -> None:
    row = np.array(heights, np.float32) / 3
    token = data.draw(st.integers(0, len(heights) - 1))
    barred = data.draw(st.sets(st.integers(0, len(heights) - 1)))
    if surely_kept(token, weights_of(row, row.max(), 1.0), parameters):
        row[sorted(barred - {token})] = -np.inf
        kept, _ = truncated(row, row.max(), parameters)
        assert kept is None or token in kept


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

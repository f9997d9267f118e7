"""Measurements go to the families that exist."""

import pytest

from backends.causal_lm.metrics import FAMILIES, MemoryMetrics


def test_counters_add_up_gauges_replace_and_histograms_collect() -> None:
    metrics = MemoryMetrics()
    for value in (2.0, 3.0):
        metrics.add("prompt_tokens_total", value)
        metrics.set("num_requests_running", value)
        metrics.observe("time_to_first_token_seconds", value)
    assert metrics.values == {"prompt_tokens_total": 5.0, "num_requests_running": 3.0}
    assert metrics.observations == {"time_to_first_token_seconds": (2, 5.0)}


@pytest.mark.parametrize("name", ["tokens", "num_slots"])
def test_a_name_of_no_such_family_is_refused_with_the_known_ones(name: str) -> None:
    with pytest.raises(
        KeyError, match=rf"'{name}' is not a counter; known are prompt_tokens_total, generation"
    ):
        MemoryMetrics().add(name, 1)


def test_every_histogram_has_rising_buckets_and_nothing_else_has_any() -> None:
    for family in FAMILIES.values():
        assert bool(family.buckets) == (family.kind == "histogram")
        assert list(family.buckets) == sorted(set(family.buckets))

"""What the benches compute without measuring."""

import json

import numpy as np
import pytest
import torch

from export.formats.origins import unpermute
from tests.bench.gguf_files import permute
from tests.bench.history import read_rows, verdict
from tests.bench.http_client import Answer, latency, tokens_per_second
from tests.bench.measure import Row, compare, in_turns, write_results
from tests.bench.workload import Workload


def row(spread: str) -> Row:
    return Row("int4, 1 stream", 2.0, 1.0, "peer", 2.0, 1.1, True, spread)


def test_permuted_rows_are_what_the_importer_undoes():
    values = np.random.default_rng(0).standard_normal((4 * 64, 16)).astype(np.float32)
    restored = unpermute(torch.from_numpy(permute(values, 4)), 4)
    np.testing.assert_array_equal(restored.numpy(), values)
    assert not np.array_equal(permute(values, 4), values)


def test_a_ratio_is_the_median_of_those_taken_in_one_round():
    compared = compare("x", ours=[10, 30, 20], peer=[10, 10, 20], peer_name="peer", goal=1.1)
    assert (compared.ratio, compared.met, compared.spread) == (1.0, False, "1.00-3.00")


def test_contenders_take_turns_and_the_first_round_does_not_count():
    order: list[str] = []

    def contender(name: str):
        return lambda: order.append(name) or float(len(order))

    figures = in_turns({"a": contender("a"), "b": contender("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert figures == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ("1.00-1.10", "1.20-1.30", "better"),
        ("1.00-1.10", "0.80-0.90", "worse"),
        ("1.00-1.10", "1.05-1.30", ""),
    ],
)
def test_only_spreads_that_do_not_overlap_are_a_change(then, now, said):
    assert verdict(row(then), row(now)) == said


def test_a_result_file_is_read_back(tmp_path):
    write_results([row("1.90-2.10")], tmp_path / "old.json")
    assert read_rows(tmp_path / "old.json") == [row("1.90-2.10")]


@pytest.mark.parametrize("content", ["", "[]", json.dumps({"rows": [{"name": "x"}]})])
def test_a_file_that_is_no_result_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content)
    with pytest.raises(SystemExit, match=r"other\.json is no result of `make bench`"):
        read_rows(path)


def test_latency_is_counted_from_the_request_and_between_texts_of_one_stream():
    answers = [Answer(0.0, (0.1, 0.2, 0.4), 30), Answer(1.0, (1.3, 1.4), 10)]
    felt = latency(answers)
    assert felt.first[0] == pytest.approx(200)
    assert felt.between[0] == pytest.approx(100)
    assert tokens_per_second(answers) == pytest.approx(40 / 1.4)


def test_a_rate_counts_new_tokens_and_of_a_prefill_those_of_the_prompt():
    assert Workload(8, 32, 64).tokens == 512
    assert Workload(1, 128, 1).tokens == 128
    assert Workload(1, 128, 1).name == "prefill of 128"

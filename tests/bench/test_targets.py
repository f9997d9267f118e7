"""The table of targets: what it makes of result files."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from tests.bench import verdicts
from tests.bench.goals import BARE, MEMORY, best_peer, goal_beside
from tests.bench.measure import Row, compare
from tests.bench.targets import TARGETS, Target, judged, summary
from tests.bench.verdicts import Verdict

MACHINE = {"processor": "Z80", "cores": 2}


def row(peer: str, ratio: float, name: str = "toy int8, 1 stream", goal: float | None = 1.1) -> Row:
    return compare(name, ours=[ratio], peer=[1.0], peer_name=peer, goal=goal)


def bench(*rows: Row) -> dict[str, object]:
    return {"machine": MACHINE, "rows": [asdict(each) for each in rows]}


def target(file: str) -> Target:
    return next(each for each in TARGETS if each.file == file)


def test_the_best_peer_is_the_one_that_leaves_the_lowest_ratio_and_no_limit_is_a_peer():
    rows = [row(BARE, 0.5), row(MEMORY, 0.6), row("llama.cpp", 1.2), row("genai", 0.9), row("wheel", 1.0)]
    assert best_peer(rows).peer_name == "genai"


def test_only_eight_bits_and_more_have_a_goal_beside_memory():
    assert [goal_beside(MEMORY, 1, bits) for bits in ("fp32", "int8", "int4")] == [0.8, 0.8, None]


def test_each_workload_is_judged_beside_its_own_best_peer():
    results = bench(
        row("llama.cpp", 1.2),
        row("genai", 1.3),
        row(BARE, 0.9),
        row("genai", 1.0, "toy int8, 16 streams"),
        row("llama.cpp", 2.0, "toy int8, 16 streams", 1.5),
        row("llama.cpp", 1.0, "toy int8, prefill of 128"),
        row(BARE, 1.0, "toy int8, 8 streams"),  # no peer is here
    )
    alone = verdicts.beside_best_peer(("1 stream",), results)
    assert list(alone) == [Verdict("toy int8, 1 stream", "1.20 × llama.cpp (1.20-1.20)", "≥ 1.1", True)]
    together = verdicts.beside_best_peer(("8 streams", "16 streams"), results)
    assert [(each.subject, each.met) for each in together] == [("toy int8, 16 streams", False)]


def test_a_figure_without_a_goal_is_told_and_not_judged():
    (told,) = verdicts.beside_memory(bench(row("llama.cpp", 1.2), row(MEMORY, 0.4, goal=None)))
    assert told == Verdict("toy int8, 1 stream", "0.40 × memory (0.40-0.40)")


def serving(stack_ms: float) -> dict[str, object]:
    latency = {"first": [stack_ms, 99.0], "between": [5.0, 9.0]}
    engine = {"first": [40.0, 44.0], "between": [4.0, 4.5]}
    felt = [("trident", latency), ("engine in-process", engine), ("llama.cpp", engine)]
    rows = bench(row("llama.cpp", 1.3, "1 client", 1.2), row("engine in-process", 0.8, "1 client", 0.85))
    latencies = [{"name": "1 client", "who": who, "streams": 1, "latency": each} for who, each in felt]
    return {**rows, "latencies": latencies}


def test_the_engine_is_no_peer_of_the_stack_but_what_its_cost_is_counted_from():
    speed, first, between = verdicts.over_http(serving(50))
    assert speed.measured == "1.30 × llama.cpp (1.30-1.30)"
    assert (first.measured, between.measured) == ("50 / 99, theirs 40 / 44", "5 / 9, theirs 4 / 4")
    (cost,) = verdicts.stack_cost(serving(50))
    assert not cost.met


@pytest.mark.parametrize(("stack_ms", "met"), [(55.0, True), (55.1, False)])
def test_the_stack_may_be_fifteen_milliseconds_later_than_the_engine(stack_ms, met):
    (delay,) = verdicts.stack_delay(serving(stack_ms))
    assert delay.met is met


@pytest.mark.parametrize(("late", "met"), [(1.05, True), (1.06, False)])
def test_a_late_token_of_retention_is_judged_and_one_of_attention_told(late, met):
    timings = [
        {"model": model, "position": position, "median": 4.0, "ratio": ratio, "spread": [ratio, ratio]}
        for model in ("retention", "attention")
        for position, ratio in ((100, 1.0), (16_000, late), (1_000, 99.0))
    ]
    assert [each.met for each in verdicts.late_token({"timings": timings})] == [met, None]


def test_parked_chats_must_be_soon_there_of_one_size_and_many():
    resumed = {
        "tier": "disk",
        "chats": 9,
        "p50": 1.0,
        "p99": 21.0,
        "longest": 30.0,
        "goal": 20.0,
        "met": False,
    }
    memory = [
        {"tokens": 10, "retention": 8, "attention": 80, "chats_in_a_gb": [9, 1], "ratio": 10.0, "goal": None},
        {
            "tokens": 90,
            "retention": 9,
            "attention": 720,
            "chats_in_a_gb": [8, 0],
            "ratio": 80.0,
            "goal": 20.0,
        },
    ]
    found = verdicts.parked_chats({"resumed": [resumed], "memory": memory})
    assert [(each.measured.split()[0], each.met) for each in found] == [
        ("p99", False),
        ("8-9", False),
        ("80", True),
    ]


def test_a_precision_is_judged_by_its_dearest_text_and_missed_where_it_was_refused():
    rows = [
        {"precision": "fp32", "perplexity": {"talk": 10.0, "prose": 20.0}},
        {"precision": "int8", "perplexity": {"talk": 9.9, "prose": 20.2}},
        {"precision": "int4", "perplexity": {}},
    ]
    int8, int4 = verdicts.perplexity({"rows": rows})
    assert (int8.measured, int8.met) == ("-1.00% on talk, +1.00% on prose", False)
    assert (int4.measured, int4.met) == ("refused by its proof", False)


@pytest.mark.parametrize(("seconds", "wrong", "met"), [(600, [], True), (20, [], False), (600, ["x"], False)])
def test_a_soak_counts_when_it_was_long_enough_and_all_was_in_order(seconds, wrong, met):
    results = {"clients": 2, "requests": 9, "seconds": seconds, "drift": 0.01, "wrong": wrong}
    (soaked,) = verdicts.soak(results)
    assert soaked.met is met


def test_the_dearest_guide_is_the_one_that_is_judged():
    rows = [
        {"guide": guide, "streams": 8, "ratio": ratio, "spread": "1-2"}
        for guide, ratio in (("regex", 1.02), ("schema", 1.12))
    ]
    (dearest,) = verdicts.guiding({"rows": rows})
    assert (dearest.subject, dearest.met) == ("schema, 8 streams, dearest of 2", False)


def test_an_export_must_be_soon_done_and_take_little():
    row = {"model": "m", "precision": "int8", "seconds": 90.0, "spread": [80.0, 95.0], "memory": 4.1}
    time, memory = verdicts.export({"rows": [{**row, "goal_seconds": 180.0, "goal_memory": 4.0}]})
    assert (time.measured, time.met, memory.met) == ("90 s (80.0-95.0)", True, False)


def test_a_target_says_which_bench_measures_it_where_there_is_no_file(tmp_path):
    missing = judged(target("start.json"), tmp_path)
    assert (missing.verdicts, missing.why) == ((), "not measured: make bench-start")


@pytest.mark.parametrize("content", ["", "[]", '{"rows": 1}', '{"machine": {}, "rows": []}'])
def test_a_file_of_another_version_is_named(tmp_path, content):
    (tmp_path / "gateway.json").write_text(content)
    assert re.match(r"gateway\.json is another version's", judged(target("gateway.json"), tmp_path).why)


def test_figures_come_with_their_time_and_machine_and_are_counted(tmp_path):
    start = {"machine": MACHINE, "model": "m", "seconds": 16.0, "spread": [15.0, 17.0], "goal": 15.0}
    (tmp_path / "start.json").write_text(json.dumps(start))
    late = judged(target("start.json"), tmp_path)
    assert late.verdicts == (Verdict("m", "16.0 s (15.0-17.0)", "≤ 15 s", False),)
    assert re.fullmatch(r"\d\d \w{3} \d\d:\d\d", late.when)
    missing = judged(target("export.json"), tmp_path)
    assert summary([late, missing]) == "0 met, 1 missed; not measured: 1 of 2 targets\nZ80, 2 cores"


@pytest.mark.parametrize("each", TARGETS, ids=lambda each: each.what)
def test_the_command_of_each_target_is_there(each):
    kind, name = each.command.split()[:2]
    if kind == "make":
        makefile = Path(__file__).parents[2] / "Makefile"
        assert re.search(rf"^{name}:", makefile.read_text(), re.MULTILINE)
    else:
        assert (Path(__file__).parent / f"{each.command.rpartition('.')[2]}.py").exists()

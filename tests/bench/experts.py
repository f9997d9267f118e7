"""`make bench-experts`: what a mixture's experts cost a token, beside a dense layer of the active size.

Three models of the same attention and random weights: 8 experts of 704 of which 2 are chosen, one dense
feed-forward of 1,408, and next to none, whose time is what the rest of a step takes. They take turns.
"""

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.settings import EngineSettings
from export.manifest import Precision
from tests.bench.measure import machine, write_json
from tests.bench.reference import ATTENTION, export_reference

RESULTS = Path(__file__).parent / "results" / "experts.json"
ROWS = (1, 8, 16)
PRECISIONS: tuple[Precision, ...] = ("fp32", "int8", "int4")
SETTINGS = EngineSettings(slots=max(ROWS), speculative_tokens=0)
GOAL = 1.3
REST, DENSE, EXPERTS = "rest", "dense", "experts"
MODELS = {
    REST: ATTENTION.model_copy(update={"d_ff": 16}),
    DENSE: ATTENTION,
    EXPERTS: ATTENTION.model_copy(
        update={"ffn": "moe", "num_experts": 8, "experts_per_token": 2, "d_ff": ATTENTION.d_ff // 2}
    ),
}


@dataclass(frozen=True)
class Cost:
    """Milliseconds of a decode step of so many rows, medians; experts / dense of the feed-forwards alone."""

    precision: Precision
    rows: int
    rest: float
    dense: float
    experts: float
    ratio: float
    spread: tuple[float, float]


class Model:
    """One model with all of its rows in use."""

    def __init__(self, name: str, precision: Precision) -> None:
        version = export_reference(f"experts-{name}", MODELS[name], precision)
        manifest = read_manifest(version / "manifest.json")
        self._runner = OnnxRuntimeRunner(version, manifest, SETTINGS)
        self._tokens = np.random.default_rng(0).integers(manifest.vocab_size, size=(64, SETTINGS.slots))
        for row in range(SETTINGS.slots):
            self._runner.reset(row)
            self._runner.prefill(row, self._tokens[:32, row], 0)

    def step(self, rows: int) -> float:
        """Median milliseconds of a decode step of `rows`, over 32 steps of other tokens each."""
        times = []
        for position in range(32, 64):
            start = time.perf_counter()
            self._runner.decode(self._tokens[position, :rows], np.full(rows, position))
            times.append(1e3 * (time.perf_counter() - start))
        return statistics.median(times)


def main() -> None:
    """Measure, print, write."""
    rounds = _rounds()
    costs = [cost for precision in PRECISIONS for cost in _costs(precision, rounds)]
    _print(costs)
    write_json({"machine": machine(), "goal": GOAL, "costs": [asdict(cost) for cost in costs]}, RESULTS)


def _rounds() -> int:
    parser = argparse.ArgumentParser(prog="make bench-experts ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="counted rounds, after one that is not")
    return int(parser.parse_args().rounds)


def _costs(precision: Precision, rounds: int) -> list[Cost]:
    models = {name: Model(name, precision) for name in MODELS}
    return [_cost(models, precision, rows, rounds) for rows in ROWS]


def _cost(models: dict[str, Model], precision: Precision, rows: int, rounds: int) -> Cost:
    turns = [{name: model.step(rows) for name, model in models.items()} for _ in range(rounds + 1)][1:]
    ratios = [(turn[EXPERTS] - turn[REST]) / (turn[DENSE] - turn[REST]) for turn in turns]
    medians = {name: round(statistics.median(turn[name] for turn in turns), 3) for name in models}
    spread = round(min(ratios), 2), round(max(ratios), 2)
    return Cost(precision, rows, ratio=round(statistics.median(ratios), 2), spread=spread, **medians)


def _print(costs: list[Cost]) -> None:
    table = Table(
        "precision", "rows", "rest ms", "with dense", "with experts", "experts / dense", "goal at one row"
    )
    for cost in costs:
        ratio = f"{cost.ratio:.2f} ({cost.spread[0]:.2f}-{cost.spread[1]:.2f})"
        goal = "" if cost.rows > 1 else f"{GOAL:g} {'met' if cost.ratio <= GOAL else 'missed'}"
        table.add_row(
            cost.precision,
            str(cost.rows),
            f"{cost.rest:.2f}",
            f"{cost.dense:.2f}",
            f"{cost.experts:.2f}",
            ratio,
            goal,
        )
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

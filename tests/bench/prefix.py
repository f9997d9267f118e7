"""`make bench-prefix`: the first token of a second turn over a long history, remembered and read anew.

An engine with the prefix cache and one without are asked the same, in turns; every round has a history of its
own, which only the first of them has answered before.
"""

import argparse
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest, Output
from backends.causal_lm.settings import EngineSettings
from tests.bench.engine import Waiting
from tests.bench.measure import machine, write_json
from tests.bench.reference import MODELS, exported

RESULTS = Path(__file__).parent / "results" / "prefix.json"
HISTORY, ANSWER, QUESTION = 1_000, 32, 32  # tokens
GOAL = 0.15


@dataclass(frozen=True)
class SecondTurn:
    """Milliseconds to the first token, medians; the median of the rounds' ratios, and their range."""

    model: str
    cold: float
    warm: float
    ratio: float
    spread: tuple[float, float]
    cached_tokens: int
    goal: float
    met: bool


class FirstToken(Waiting):
    """Notes when the first token came, and what the end told."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0
        self.ids: list[int] = []
        self.cached = 0

    def send(self, output: Output, final: bool) -> None:
        self.at = self.at or time.perf_counter()
        self.ids += output.token_ids
        self.cached = output.num_cached_tokens
        super().send(output, final)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(prog="make bench-prefix ARGS=…", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = int(parser.parse_args().rounds)
    turns = [_measure(name, rounds) for name in MODELS]
    _print(turns)
    write_json({"machine": machine(), "turns": [asdict(turn) for turn in turns]}, RESULTS)


def _measure(name: str, rounds: int) -> SecondTurn:
    Console(stderr=True).print(f"{name} …")
    version = exported(name)
    warm, cold = (
        load_engine(version, EngineSettings(slots=1, prefix_cache_bytes=size), MemoryMetrics())
        for size in (EngineSettings().prefix_cache_bytes, 0)
    )
    generator = np.random.default_rng(0)
    times: list[tuple[float, float]] = []
    cached = 0
    for round_number in range(rounds + 1):
        history, question = (generator.integers(2, 8192, size).tolist() for size in (HISTORY, QUESTION))
        first, _ = _ask(warm, history, ANSWER)
        second = [*history, *first.ids, *question]
        remembered, warm_time = _ask(warm, second, 2)
        anew, cold_time = _ask(cold, second, 2)
        if remembered.ids != anew.ids:
            raise RuntimeError(f"{name} says {remembered.ids} with the cache and {anew.ids} without")
        if round_number:
            times.append((warm_time, cold_time))
            cached = remembered.cached
    warm.close()
    cold.close()
    return _turn(name, times, cached)


def _ask(engine: Engine, prompt: list[int], number: int) -> tuple[FirstToken, float]:
    """Write `number` greedy tokens; the milliseconds to the first."""
    values = {"input_ids": prompt, "max_tokens": number, "min_tokens": number, "stream": True}
    request, sink = GenerationRequest.from_values("bench", values, engine.manifest), FirstToken()
    start = time.perf_counter()
    engine.submit(request, sink)
    sink.ended.wait()
    if sink.error:
        raise RuntimeError(sink.error)
    return sink, (sink.at - start) * 1e3


def _turn(name: str, times: list[tuple[float, float]], cached: int) -> SecondTurn:
    ratios = [warm / cold for warm, cold in times]
    warm, cold = (round(statistics.median(each), 1) for each in zip(*times, strict=True))
    ratio = statistics.median(ratios)
    spread = (round(min(ratios), 3), round(max(ratios), 3))
    return SecondTurn(name, cold, warm, round(ratio, 3), spread, cached, GOAL, ratio <= GOAL)


def _print(turns: list[SecondTurn]) -> None:
    table = Table("model", title=f"first token of a second turn over {HISTORY:,} tokens, ms")
    for name in ("read anew", "remembered", "ratio", "spread", "tokens not read", "goal"):
        table.add_column(name, justify="right")
    for turn in turns:
        low, high = turn.spread
        table.add_row(
            turn.model, f"{turn.cold:.1f}", f"{turn.warm:.1f}", f"{turn.ratio:.3f}", f"{low}-{high}",
            f"{turn.cached_tokens:,}", f"≤ {turn.goal:g} {'met' if turn.met else 'missed'}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

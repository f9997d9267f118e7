"""`make bench-export`: time and memory from a packaged GGUF file to a model installed and compared."""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from gguf import GGUFReader
from rich.console import Console
from rich.table import Table

from export.sources import find_source
from tests.bench.measure import machine, write_json

RESULTS = Path(__file__).parent / "results" / "export.json"
MODEL = "smollm2"
GOAL_SECONDS, GOAL_MEMORY = 180.0, 4.0  # memory: of the weights in float32


@dataclass(frozen=True)
class Cost:
    """Seconds, median and range; the peak of the largest process over the bytes of the weights in float32."""

    model: str
    precision: str
    seconds: float
    spread: tuple[float, float]
    peak_bytes: int
    memory: float
    goal_seconds: float = GOAL_SECONDS
    goal_memory: float = GOAL_MEMORY


def main() -> None:
    """Export, print, write."""
    parser = argparse.ArgumentParser(prog="make bench-export ARGS=…", description=__doc__)
    parser.add_argument("--precisions", nargs="+", default=["int8"], choices=["fp32", "int8", "int4"])
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    costs = [_cost(precision, arguments.rounds) for precision in arguments.precisions]
    _print(costs)
    write_json({"machine": machine(), "rows": [asdict(cost) for cost in costs]}, RESULTS)


def _cost(precision: str, rounds: int) -> Cost:
    runs = [_export(precision) for _ in range(rounds)]
    times = [round(seconds, 1) for seconds, _ in runs]
    peak = max(size for _, size in runs)
    weights = 4 * sum(int(tensor.n_elements) for tensor in GGUFReader(find_source(MODEL, None)).tensors)
    spread = min(times), max(times)
    return Cost(MODEL, precision, statistics.median(times), spread, peak, round(peak / weights, 2))


def _export(precision: str) -> tuple[float, int]:
    """Seconds of one export into a repository of its own, and the most bytes that a process of it held."""
    with tempfile.TemporaryDirectory(prefix="trident-export-") as repository:
        command = [sys.executable, "-m", "export", "--model", MODEL, "--precision", precision]
        start = time.perf_counter()
        process = subprocess.Popen([*command, "--repository", repository])
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the export of {MODEL} in {precision} ended with {process.returncode}")
    return seconds, 1024 * usage.ru_maxrss


def _print(costs: list[Cost]) -> None:
    table = Table("model", "precision", "seconds", "spread", "goal", "peak MiB", "of fp32", "goal")
    for cost in costs:
        time_goal, memory_goal = cost.seconds <= cost.goal_seconds, cost.memory <= cost.goal_memory
        table.add_row(
            cost.model, cost.precision, f"{cost.seconds:.0f}", f"{cost.spread[0]:.0f}-{cost.spread[1]:.0f}",
            f"≤ {cost.goal_seconds:g} {'met' if time_goal else 'missed'}",
            f"{cost.peak_bytes / 2**20:,.0f}", f"{cost.memory:.2f} ×",
            f"≤ {cost.goal_memory:g} {'met' if memory_goal else 'missed'}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

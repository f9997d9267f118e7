"""`make bench-gateway`: what the gateway alone can answer on two cores, before a Triton that answers at once.

wrk's clients keep their connections and ask again as soon as they are answered. They share the two cores with
the gateway's process, so that the CPU seconds of both are told beside the rate.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from tests.bench.instant_gateway import MODEL, TEXT
from tests.bench.measure import machine, write_json
from tests.e2e.gateway_process import RunningGateway, running_gateway
from tests.ports import free_ports

SCRIPT = Path(__file__).with_name("chat.lua")
RESULTS = Path(__file__).parent / "results" / "gateway.json"
NO_WRK = "`make bench-gateway` asks with wrk, which isn't here; get it with: sudo apt-get install wrk"
NO_TRITON = "127.0.0.1:1"
CORES = 2
GOAL, GOAL_P95_MS = 2_400.0, 180.0
BODY = {
    "model": MODEL,
    "messages": [
        {"role": "system", "content": "You are a helpful assistant who answers in one sentence."},
        {"role": "user", "content": "What did the lighthouse keeper do when the storm came in?"},
    ],
    "max_tokens": 64,
    "temperature": 0.7,
    "top_p": 0.95,
    "seed": 7,
}


@dataclass(frozen=True)
class Run:
    """One run of wrk: answers in `seconds`, milliseconds to each, and the CPU seconds of both sides."""

    requests: int
    seconds: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    gateway_cpu: float
    wrk_cpu: float

    @property
    def rate(self) -> float:
        """Requests per second."""
        return self.requests / self.seconds


@dataclass(frozen=True)
class Row:
    """The runs with one number of connections: medians, and the range of the rate.

    `per_gateway_cores` is what two cores would answer if the gateway had them to itself.
    """

    connections: int
    rate: float
    spread: tuple[float, float]
    p50_ms: float
    p95_ms: float
    p99_ms: float
    gateway_cores: float
    wrk_cores: float
    per_gateway_cores: float
    goal: float
    goal_p95_ms: float
    met: bool


def main() -> None:
    """Measure, print, write."""
    arguments = parse_arguments()
    if not shutil.which("wrk"):
        raise SystemExit(NO_WRK)
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    (port,) = free_ports(1)
    with running_gateway(port, NO_TRITON, module="tests.bench.instant_gateway") as gateway:
        rows = [bench(gateway, connections, arguments) for connections in arguments.connections]
    print_table(rows)
    write_json({"machine": machine(), "rows": [*map(asdict, rows)]}, RESULTS)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench-gateway ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, nargs="+", default=[64, 256])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that is not")
    parser.add_argument("--seconds", type=int, default=5, help="of one round")
    return parser.parse_args()


def bench(gateway: RunningGateway, connections: int, arguments: argparse.Namespace) -> Row:
    """The row of one number of connections."""
    Console(stderr=True).print(f"{connections} connections …")
    load(gateway, connections, arguments.seconds)
    return row(connections, [load(gateway, connections, arguments.seconds) for _ in range(arguments.rounds)])


def load(gateway: RunningGateway, connections: int, seconds: int) -> Run:
    """One run of wrk; RuntimeError unless every answer was a 200 with its text."""
    options = ["--threads=1", f"--connections={connections}", f"--duration={seconds}s", "--timeout=10s"]
    url, script = f"{gateway.url}/v1/chat/completions", f"--script={SCRIPT}"
    command = ["wrk", *options, script, url, "--", json.dumps(BODY), TEXT, str(connections)]
    before = cpu_seconds(gateway.pid)
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    after = cpu_seconds(gateway.pid)
    told = json.loads(printed.splitlines()[-1])
    if failed := told.pop("failed"):
        raise RuntimeError(f"{failed} of {told['requests']} requests got another answer:\n{printed}")
    return Run(**told, gateway_cpu=after[0] - before[0], wrk_cpu=after[1] - before[1])


def cpu_seconds(pid: int) -> tuple[float, float]:
    """Used so far by a process, and by the children of this one that have ended."""
    times, ended = psutil.Process(pid).cpu_times(), resource.getrusage(resource.RUSAGE_CHILDREN)
    return times.user + times.system, ended.ru_utime + ended.ru_stime


def row(connections: int, runs: Sequence[Run]) -> Row:
    """Medians over the runs."""
    rates = [run.rate for run in runs]
    rate = statistics.median(rates)
    p50, p95, p99 = (statistics.median(getattr(run, f"p{part}_ms") for run in runs) for part in (50, 95, 99))
    per_core = statistics.median(run.requests / run.gateway_cpu for run in runs)
    return Row(
        connections=connections,
        rate=round(rate, 1),
        spread=(round(min(rates), 1), round(max(rates), 1)),
        p50_ms=round(p50, 2),
        p95_ms=round(p95, 2),
        p99_ms=round(p99, 2),
        gateway_cores=round(statistics.median(run.gateway_cpu / run.seconds for run in runs), 2),
        wrk_cores=round(statistics.median(run.wrk_cpu / run.seconds for run in runs), 2),
        per_gateway_cores=round(CORES * per_core, 1),
        goal=GOAL,
        goal_p95_ms=GOAL_P95_MS,
        met=rate >= GOAL and p95 < GOAL_P95_MS,
    )


def print_table(rows: Sequence[Row]) -> None:
    """The rows for a person."""
    table = Table(title=f"The gateway alone, whole chats; it and wrk share {CORES} cores")
    names = ("clients", "answers/s", "spread", "p50 ms", "p95", "p99", "gateway", "wrk", "both cores", "goal")
    for name in names:
        table.add_column(name, justify="right")
    for each in rows:
        low, high = each.spread
        table.add_row(
            str(each.connections), f"{each.rate:,.0f}", f"{low:,.0f}-{high:,.0f}",
            f"{each.p50_ms:.1f}", f"{each.p95_ms:.1f}", f"{each.p99_ms:.1f}",
            f"{each.gateway_cores:.2f} cores", f"{each.wrk_cores:.2f} cores",
            f"{each.per_gateway_cores:,.0f}/s", f"{each.goal:,.0f} {'met' if each.met else 'missed'}",
        )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

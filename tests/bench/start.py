"""`make bench-start`: from `make serve` on a machine that is set up to the first token over HTTP."""

import argparse
import os
import signal
import statistics
import subprocess
import time
from pathlib import Path

from rich.console import Console

from tests.bench.http_client import Load, run_load
from tests.bench.measure import PAUSE_SECONDS, machine, write_json
from tests.e2e.gateway_process import RunningGateway, await_ready
from tests.ports import free_ports

ROOT = Path(__file__).parents[2]
RESULTS = Path(__file__).parent / "results" / "start.json"
MODEL = "smollm2"
OPTIONS = ("--port", "--grpc-port", "--metrics-port", "--http-port")
LOAD = Load(clients=1, prompt="What does a lighthouse keeper do?", new_tokens=8)
GOAL_SECONDS = 15.0
GRACE_SECONDS = 30.0


def main() -> None:
    """Start, ask and stop a few times; print, write."""
    parser = argparse.ArgumentParser(prog="make bench-start ARGS=…", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    times = []
    for _ in range(parser.parse_args().rounds):
        times.append(round(_seconds_to_first_token(), 2))
        Console(stderr=True).print(f"{times[-1]} s")
        time.sleep(PAUSE_SECONDS)
    seconds, spread = statistics.median(times), (min(times), max(times))
    content = {"model": MODEL, "seconds": seconds, "spread": spread, "goal": GOAL_SECONDS}
    Console().print(content)
    write_json({"machine": machine(), **content}, RESULTS)


def _seconds_to_first_token() -> float:
    ports = free_ports(len(OPTIONS))
    options = " ".join(f"{option} {port}" for option, port in zip(OPTIONS, ports, strict=True))
    start = time.perf_counter()
    process = subprocess.Popen(
        ["make", "serve", f"ARGS=--model {MODEL} {options}"],
        cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        gateway = RunningGateway(f"http://127.0.0.1:{ports[0]}", process.pid)
        await_ready(gateway, process)
        (answer,) = run_load(gateway.url, MODEL, LOAD, {"min_tokens": LOAD.new_tokens})
        return answer.arrivals[0] - start
    finally:
        os.killpg(process.pid, signal.SIGINT)  # as Ctrl-C does
        process.wait(GRACE_SECONDS)


if __name__ == "__main__":
    main()

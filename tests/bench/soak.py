"""`make soak`: many clients at once for ten minutes, of every kind, against the engine in this process.

At the end of their load (soak_clients.py) memory must be as it was when the budgets of prefixes and sessions
had filled, every slot free, and the counters must add up to what the clients have seen.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from rich.console import Console

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.settings import EngineSettings
from tests.bench.engine import newest_version
from tests.bench.measure import machine, write_json
from tests.bench.soak_clients import Client, Tally, fill_rows

REPOSITORY = Path(__file__).parents[2] / "model_repository"
RESULTS = Path(__file__).parent / "results" / "soak.json"
MOST_DRIFT, SECONDS = 0.03, 600.0
WARM_UP, WINDOW = 0.2, 0.1  # parts of the time: until memory is compared, and over which
SAMPLES_A_MINUTE = 120
MIB = 2**20


def main() -> None:
    """Soak, print, write; the exit code says whether all was in order."""
    arguments = parse_arguments()
    version = newest_version(arguments.repository / f"{arguments.model}_engine")
    metrics, tally = MemoryMetrics(), Tally()
    with tempfile.TemporaryDirectory() as directory:
        settings = EngineSettings(
            queue_size=24,  # fewer than there are clients: some are refused
            prefix_cache_bytes=32 * MIB,
            session_memory_bytes=16 * MIB,
            session_directory=directory,
            session_disk_bytes=64 * MIB,
        )
        engine = load_engine(version, settings, metrics)
        try:
            fill_rows(engine, settings.slots, tally)
            memory = soak(engine, tally, arguments.clients, arguments.seconds)
            fill_rows(engine, settings.slots, tally)
        finally:
            engine.close()
    report = verdict(metrics, tally, memory)
    Console().print(report)
    content = {"machine": machine(), "seconds": arguments.seconds, "clients": arguments.clients, **report}
    write_json(content, RESULTS)
    raise SystemExit(bool(report["wrong"]))


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make soak ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=SECONDS)
    return parser.parse_args()


def soak(engine: Engine, tally: Tally, num_clients: int, seconds: float) -> list[int]:
    """Let the clients ask; bytes of the process's own memory, twice a second."""
    until = time.monotonic() + seconds
    clients = [Client(number, engine, tally, until) for number in range(num_clients)]
    for client in clients:
        client.start()
    memory = []
    while time.monotonic() < until:
        memory.append(own_memory())
        time.sleep(60 / SAMPLES_A_MINUTE)
    for client in clients:
        client.join(300)
        if client.is_alive():
            raise RuntimeError(f"{client.name} waits for ever")
    return memory


def own_memory() -> int:
    """Resident bytes without the pages of files: those of the embedding come with each word's first use, one
    by one, and go whenever the system needs the place."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return sum(1024 * int(status[name].split()[0]) for name in ("RssAnon", "RssShmem"))


def verdict(metrics: MemoryMetrics, tally: Tally, memory: list[int]) -> dict[str, object]:
    """The figures, and what is wrong with them."""
    start, window = int(WARM_UP * len(memory)), max(1, int(WINDOW * len(memory)))
    before, after = statistics.median(memory[start : start + window]), statistics.median(memory[-window:])
    drift = after / before - 1
    count, ends = metrics.values, tally.ends
    finished, cancelled = ends["stop"] + ends["length"], ends["cancelled"]
    checks = {
        "memory has grown": drift <= MOST_DRIFT,
        "slots or places in the queue are lost": not (
            count["num_requests_running"] or count["num_requests_waiting"]
        ),
        "requests have ended otherwise than counted": (
            count["requests_finished_total"] == finished
            and count["requests_cancelled_total"] == cancelled
            and count["requests_failed_total"] == ends.total() - finished - cancelled
        ),
        "tokens have come otherwise than counted": (
            count["generation_tokens_total"] == tally.tokens + tally.unseen
        ),
        "requests have failed": not (ends["internal"] or ends["unavailable"]),
    }
    return {
        "requests": ends.total(),
        "ends": dict(ends),
        "tokens": tally.tokens,
        "drafts": count["spec_decode_num_drafts_total"],
        "resumed": count["sessions_resumed_total"],
        "memory_mib": [round(before / MIB, 1), round(after / MIB, 1)],
        "memory_mib_by_minute": by_minute(memory),
        "drift": round(drift, 4),
        "wrong": [name for name, is_right in checks.items() if not is_right],
    }


def by_minute(memory: list[int]) -> list[float]:
    """The median of each minute begun, in MiB."""
    minutes = (memory[at : at + SAMPLES_A_MINUTE] for at in range(0, len(memory), SAMPLES_A_MINUTE))
    return [round(statistics.median(minute) / MIB, 1) for minute in minutes]


if __name__ == "__main__":
    main()

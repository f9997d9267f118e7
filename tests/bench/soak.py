"""`make soak`: many clients at once for ten minutes, of every kind, against the engine in this process.

They ask for texts of random lengths and some for texts in a form, cancel some, go on with conversations
under a session id, wait no longer than they may, and belong to different users. At the end: memory must be as
it was when the budgets of prefixes and sessions had filled, every slot free, and the counters must add up to
what the clients have seen.
"""

import argparse
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest, Output
from backends.causal_lm.settings import EngineSettings
from tests.bench.engine import newest_version
from tests.bench.measure import machine, write_json

REPOSITORY = Path(__file__).parents[2] / "model_repository"
RESULTS = Path(__file__).parent / "results" / "soak.json"
MOST_DRIFT = 0.03
WARM_UP, WINDOW = 0.2, 0.1  # parts of the time: until memory is compared, and over which
LONGEST_PROMPT, LONGEST_ANSWER = 200, 48  # tokens
SAMPLES_A_MINUTE = 120
MIB = 2**20
GUIDE = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "([a-z]+ ){100}"}


@dataclass
class Tally:
    """What the clients have seen; `unseen` counts tokens that end an answer and are not shown."""

    ends: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    unseen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, end: str, output: Output | None) -> None:
        """Note the end of a request."""
        with self.lock:
            self.ends[end] += 1
            if output is not None:
                self.tokens += output.num_output_tokens
                self.unseen += output.finish_reason == "stop" and not output.stop_reason


class Client(threading.Thread):
    """Asks one thing after another until the time is up."""

    def __init__(self, number: int, engine: Engine, tally: Tally, until: float) -> None:
        super().__init__(name=f"client-{number}")
        self._engine, self._tally, self._until = engine, tally, until
        self._random = random.Random(number)
        self._number, self._asked = number, 0
        self._talk: list[int] = []

    def run(self) -> None:
        while time.monotonic() < self._until:
            self._ask()

    def _ask(self) -> None:
        rng, self._asked = self._random, self._asked + 1
        request_id = f"{self._number}-{self._asked}"
        sink = Sink(
            self._engine, request_id, cancels_after=rng.choice([None, None, None, rng.randint(0, 20)])
        )
        request = GenerationRequest.from_values(request_id, self._values(), self._engine.manifest)
        self._engine.submit(request, sink)
        sink.ended.wait()
        self._tally.add(sink.end, sink.last)
        if request.session_id and sink.last is not None:
            self._talk = [*request.prompts[0].tolist(), *sink.tokens]

    def _values(self) -> dict[str, object]:
        rng = self._random
        goes_on = rng.random() < 0.4 and len(self._talk) < LONGEST_PROMPT - 40
        vocab_size = self._engine.manifest.vocab_size
        said = [rng.randrange(vocab_size // 2, vocab_size) for _ in range(rng.randint(1, 40))]
        fresh = said * rng.choice([1, 1, 2, 4])
        values: dict[str, object] = {
            "input_ids": [*self._talk, *said] if goes_on else fresh,
            "max_tokens": rng.randint(1, LONGEST_ANSWER),
            "temperature": rng.choice([0.0, 0.8]),
            "seed": rng.randrange(2**32),
            "stream": rng.random() < 0.7,
            "user": f"user {self._number % 5}",
            "priority": rng.choice([0, 0, 0, -1, 1]),
            "timeout": rng.choice([0, 0, 0, 2000]),
        }
        if rng.random() < 0.1:
            values |= GUIDE
        if not goes_on:
            self._talk = []
        return values | ({"session_id": f"talk {self._number}"} if rng.random() < 0.6 else {})


class Sink:
    """One request's end; cancels it by its id after so many tokens."""

    def __init__(self, engine: Engine, request_id: str, cancels_after: int | None) -> None:
        self._engine, self._request_id, self._cancels_after = engine, request_id, cancels_after
        self.tokens: list[int] = []
        self.last: Output | None = None
        self.end = ""
        self.ended = threading.Event()
        if cancels_after == 0:
            engine.cancel(request_id)

    def send(self, output: Output, final: bool) -> None:
        self.tokens += output.token_ids
        if final:
            self.last = output
            self._finish(output.finish_reason)
        elif self._cancels_after is not None and output.num_output_tokens >= self._cancels_after:
            self._engine.cancel(self._request_id)

    def fail(self, code: str, message: str) -> None:
        self._finish(code)

    def is_cancelled(self) -> bool:
        return False

    def _finish(self, end: str) -> None:
        assert not self.end, f"{self._request_id} has ended twice: {self.end}, {end}"
        self.end = end
        self.ended.set()


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
    parser.add_argument("--seconds", type=float, default=600)
    return parser.parse_args()


def fill_rows(engine: Engine, slots: int, tally: Tally) -> None:
    """Use every slot at once, as far as any client will: their memory is real then, and none may be lost."""
    longest = LONGEST_PROMPT + LONGEST_ANSWER
    length = min(longest, engine.manifest.max_length) - LONGEST_ANSWER
    ids = list(range(engine.manifest.vocab_size // 2, engine.manifest.vocab_size))[:length]
    values = {"input_ids": ids, "max_tokens": LONGEST_ANSWER, "min_tokens": LONGEST_ANSWER}
    sinks = [Sink(engine, f"row {row}", None) for row in range(slots)]
    for row, sink in enumerate(sinks):
        engine.submit(GenerationRequest.from_values(f"row {row}", values, engine.manifest), sink)
    for sink in sinks:
        if not sink.ended.wait(300) or sink.end != "length":
            raise RuntimeError(f"a slot is lost: {sink.end or 'its request never ended'}")
        tally.add(sink.end, sink.last)


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

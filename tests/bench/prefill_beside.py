"""`make bench-prefill`: what running streams feel of a long prompt that is read beside them.

Every step of the running streams is timed, first alone and then while a prompt of 4,096 tokens is
read. Chunks of a prompt and steps of the streams take turns; `interleave_tokens` is how long a chunk may be.
"""

import argparse
import threading
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest
from backends.causal_lm.settings import EngineSettings
from tests.bench.engine import Waiting, newest_version
from tests.bench.measure import machine, write_json

REPOSITORY = Path(__file__).parents[2] / "model_repository"
RESULTS = Path(__file__).parent / "results" / "prefill.json"
GOAL = 2.0  # p99 between tokens beside the long prompt over p99 alone


class Gaps(MemoryMetrics):
    """Metrics that note when each step's tokens came, and how long after those before."""

    def __init__(self) -> None:
        super().__init__()
        self._noted: list[tuple[float, float]] = []
        self.stepping = threading.Event()

    def observe(self, name: str, value: float) -> None:
        if name == "inter_token_latency_seconds":
            self._noted.append((time.perf_counter(), value))
            self.stepping.set()
        super().observe(name, value)

    def between(self, start: float, stop: float) -> list[float]:
        """Seconds between two tokens of a stream, of steps that ended in the span."""
        return [gap for moment, gap in self._noted if start <= moment <= stop]


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    version = newest_version(arguments.repository / f"{arguments.model}_engine")
    rows = [measure(version, tokens, arguments) for tokens in arguments.interleave]
    table = Table(*rows[0], title=f"{arguments.streams} streams while {arguments.prompt} tokens are read, ms")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=110).print(table)
    write_json({"machine": machine(), "model": str(version), "goal": GOAL, "rows": rows}, RESULTS)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench-prefill ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--streams", type=int, default=4)
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the long prompt")
    parser.add_argument("--interleave", type=int, nargs="+", default=[8, 16, 32, 64])
    return parser.parse_args()


def measure(version: Path, interleave_tokens: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One setting: gaps alone for three seconds, and beside the prompt."""
    settings = EngineSettings(interleave_tokens=interleave_tokens, speculative_tokens=0, prefix_cache_bytes=0)
    gaps = Gaps()
    engine = load_engine(version, settings, gaps)
    try:
        streams = [start(engine, number, 32) for number in range(arguments.streams)]
        gaps.stepping.wait()
        time.sleep(1)  # until all have begun
        begin = time.perf_counter()
        time.sleep(3)
        asked = time.perf_counter()
        long = Waiting()
        submit(engine, long, arguments.prompt, 1, 99)
        long.ended.wait()
        read = time.perf_counter()
        for number, stream in enumerate(streams):
            engine.cancel(str(number))
            stream.ended.wait()
    finally:
        engine.close()
    alone, beside = gaps.between(begin, asked), gaps.between(asked, read)
    p99 = [float(np.percentile(each, 99)) for each in (alone, beside)]
    return {
        "interleave_tokens": interleave_tokens,
        "p50 alone": round(1e3 * float(np.median(alone)), 1),
        "p99 alone": round(1e3 * p99[0], 1),
        "p50 beside": round(1e3 * float(np.median(beside)), 1),
        "p99 beside": round(1e3 * p99[1], 1),
        "ratio of p99": round(p99[1] / p99[0], 2),
        "read in s": round(read - asked, 2),
    }


def start(engine: Engine, number: int, prompt_tokens: int) -> Waiting:
    """A stream that runs until the engine is closed."""
    stream = Waiting()
    submit(engine, stream, prompt_tokens, engine.manifest.max_length - prompt_tokens, number)
    return stream


def submit(engine: Engine, sink: Waiting, prompt_tokens: int, new_tokens: int, seed: int) -> None:
    """A prompt of random tokens."""
    vocab_size = engine.manifest.vocab_size
    ids = np.random.default_rng(seed).integers(vocab_size // 2, vocab_size, prompt_tokens)
    values = {"input_ids": ids, "max_tokens": new_tokens, "min_tokens": new_tokens, "stream": True}
    engine.submit(GenerationRequest.from_values(str(seed), values, engine.manifest), sink)


if __name__ == "__main__":
    main()

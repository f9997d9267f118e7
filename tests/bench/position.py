"""`make bench-position`: what a token costs early and late in a text, for retention and for attention.

Both models have the same sizes and random weights (reference.py). Each really reads a text of that length
before tokens are timed; the two take turns at every position.
"""

import argparse
import math
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
from tests.bench.measure import machine, write_json
from tests.bench.reference import MODELS, exported

RESULTS = Path(__file__).parent / "results" / "position.json"
POSITIONS = (100, 1_000, 2_000, 4_000, 8_000, 16_000)
SETTINGS = EngineSettings(slots=1)
GOAL = 1.05  # of retention: a token at the last position over one at the first


@dataclass(frozen=True)
class Timing:
    """Milliseconds per decoded token at `position`, median and quartiles; what such a text's state takes."""

    model: str
    position: int
    median: float
    quartiles: tuple[float, float]
    state_bytes: int


class Text:
    """One text that grows in a model's only row."""

    def __init__(self, name: str) -> None:
        version = exported(name)
        manifest = read_manifest(version / "manifest.json")
        self.model = name
        self._vocab_size, self._states = manifest.vocab_size, manifest.states
        self._length = 0
        self._runner = OnnxRuntimeRunner(version, manifest, SETTINGS)

    def state_bytes(self, position: int) -> int:
        """What of a row's states a text of `position` tokens fills."""
        total = 0
        for state in self._states:
            size = math.prod(state.shape) * np.dtype(state.dtype).itemsize
            total += size * position // state.shape[1] if state.kind == "kv" else size
        return total

    def read_to(self, position: int) -> None:
        """Append random tokens until the text has `position` of them."""
        generator = np.random.default_rng(0)
        while self._length < position:
            count = min(SETTINGS.prefill_tokens, position - self._length)
            self._runner.prefill(0, generator.integers(self._vocab_size, size=count), self._length)
            self._length += count

    def time_tokens(self, count: int) -> list[float]:
        """Milliseconds of each of the next `count` tokens."""
        times = []
        for _ in range(count):
            start = time.perf_counter()
            self._runner.decode(np.array([1]), np.array([self._length]))
            times.append((time.perf_counter() - start) * 1e3)
            self._length += 1
        return times


def main() -> None:
    """Measure, print, write."""
    tokens = _tokens()
    texts = [Text(name) for name in MODELS]
    timings = [timing for position in POSITIONS for timing in _measure(texts, position, tokens)]
    _print(timings)
    write_json({"machine": machine(), "timings": [asdict(timing) for timing in timings]}, RESULTS)


def _tokens() -> int:
    parser = argparse.ArgumentParser(prog="make bench-position ARGS=…", description=__doc__)
    parser.add_argument("--tokens", type=int, default=90, help="timed at each position, in three turns")
    return int(parser.parse_args().tokens)


def _measure(texts: list[Text], position: int, tokens: int) -> list[Timing]:
    Console(stderr=True).print(f"position {position:,} …")
    for text in texts:
        text.read_to(position)
    times: dict[str, list[float]] = {text.model: [] for text in texts}
    for _ in range(3):
        for text in texts:
            times[text.model] += text.time_tokens(tokens // 3)
    return [_timing(text, position, times[text.model]) for text in texts]


def _timing(text: Text, position: int, figures: list[float]) -> Timing:
    low, median, high = (round(figure, 3) for figure in statistics.quantiles(figures, n=4))
    return Timing(text.model, position, median, (low, high), text.state_bytes(position))


def _print(timings: list[Timing]) -> None:
    table = Table("position", title="ms per token, median (quartiles), and against the first position")
    for name in MODELS:
        table.add_column(name, justify="right")
    first = {timing.model: timing.median for timing in timings if timing.position == POSITIONS[0]}
    for position in POSITIONS:
        cells = [
            f"{t.median:.2f} ({t.quartiles[0]:.2f}-{t.quartiles[1]:.2f}) {t.median / first[t.model]:.2f} ×"
            for t in timings
            if t.position == position
        ]
        table.add_row(f"{position:,}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

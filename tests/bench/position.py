"""`make bench-position`: what a token costs early and late in a text, for retention and for attention.

Both models have the same sizes and random weights (reference.py). Each really reads a text of that length
before tokens are timed. At every position both take turns, each there and back at the first one.
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
from backends.causal_lm.runtime.state import Bytes
from backends.causal_lm.settings import EngineSettings
from tests.bench.measure import machine, write_json
from tests.bench.reference import MODELS, exported

RESULTS = Path(__file__).parent / "results" / "position.json"
POSITIONS = (100, 1_000, 2_000, 4_000, 8_000, 16_000)
FIRST, TURNS = POSITIONS[0], 6
KINDS = ("kv", "recurrent")
SETTINGS = EngineSettings(slots=1)
GOAL = 1.05  # of retention: a token at the last position over one at the first

Turn = tuple[list[float], list[float]]  # milliseconds of each token at a position, and at the first one


@dataclass(frozen=True)
class Timing:
    """Milliseconds per decoded token at `position`, median and quartiles; what such a text's state takes.

    `ratio` is the median over the turns of a token there by one at the first position, `spread` their range.
    """

    model: str
    position: int
    median: float
    quartiles: tuple[float, float]
    ratio: float
    spread: tuple[float, float]
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
        self.read_to(FIRST)
        self._beginning = self._runner.save(0, KINDS, 0, FIRST)

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

    def time_first_tokens(self, count: int) -> list[float]:
        """The same back at the first position; the text then goes on where it was."""
        length, state = self._length, self._runner.save(0, KINDS, 0, self._length)
        self._go_to(FIRST, self._beginning)
        times = self.time_tokens(count)
        self._go_to(length, state)
        return times

    def _go_to(self, length: int, state: Bytes) -> None:
        self._runner.load(0, KINDS, 0, length, state)
        self._length = length

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
    parser.add_argument("--tokens", type=int, default=90, help=f"timed at each position, in {TURNS} turns")
    return int(parser.parse_args().tokens)


def _measure(texts: list[Text], position: int, tokens: int) -> list[Timing]:
    Console(stderr=True).print(f"position {position:,} …")
    for text in texts:
        text.read_to(position)
    turns: dict[str, list[Turn]] = {text.model: [] for text in texts}
    for _ in range(TURNS):
        for text in texts:
            first = text.time_first_tokens(tokens // TURNS)
            turns[text.model].append((text.time_tokens(tokens // TURNS), first))
    return [_timing(text, position, turns[text.model]) for text in texts]


def _timing(text: Text, position: int, turns: list[Turn]) -> Timing:
    times = [time for here, _ in turns for time in here]
    low, median, high = (round(time, 3) for time in statistics.quantiles(times, n=4))
    ratios = [statistics.median(here) / statistics.median(first) for here, first in turns]
    return Timing(
        text.model,
        position,
        median=median,
        quartiles=(low, high),
        ratio=round(statistics.median(ratios), 3),
        spread=(round(min(ratios), 2), round(max(ratios), 2)),
        state_bytes=text.state_bytes(position),
    )


def _print(timings: list[Timing]) -> None:
    table = Table("position", title=f"ms per token (quartiles), and by a token at {FIRST} (spread)")
    for name in MODELS:
        table.add_column(name, justify="right")
    for position in POSITIONS:
        cells = [
            f"{t.median:.2f} ({t.quartiles[0]:.2f}-{t.quartiles[1]:.2f}) "
            f"{t.ratio:.2f} × ({t.spread[0]:.2f}-{t.spread[1]:.2f})"
            for t in timings
            if t.position == position
        ]
        table.add_row(f"{position:,}", *cells)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

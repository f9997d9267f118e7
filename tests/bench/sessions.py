"""`make bench-sessions`: thousands of parked chats, the time to go on with one, and what each of them takes.

Every chat is one that a retention model has really read, to a length of its own: a few long texts are read
and parked on the way. The store is then opened anew, as after a restart, and chats go on in random order.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from backends.causal_lm.caching.prefixes import Prefixes
from backends.causal_lm.caching.session_files import Parked, SessionDirectory
from backends.causal_lm.caching.sessions import Sessions, session_key
from backends.causal_lm.manifest import Manifest, read_manifest
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.settings import EngineSettings
from tests.bench.measure import machine, write_json
from tests.bench.reference import ATTENTION, RETENTION, export_reference

RESULTS = Path(__file__).parent / "results" / "sessions.json"
# A quarter of the reference's state, so that ten thousand fit on a laptop's disk.
SMALL = {"d_model": 256, "num_layers": 8, "num_heads": 4, "num_kv_heads": 4, "value_dim": 64, "d_ff": 704}
MODELS = {
    "retention": RETENTION.model_copy(update=SMALL),
    "attention": ATTENTION.model_copy(update=SMALL | {"num_kv_heads": 2, "value_dim": None}),
}
NUM_TEXTS, LONGEST = 6, 8_192
MEMORY_BYTES = 2**30
SETTINGS = EngineSettings(slots=1)
KINDS = ("kv", "recurrent")
GOAL_MS, GOAL_CHATS = 20.0, 20.0


@dataclass(frozen=True)
class Resumed:
    """Milliseconds from a request's arrival to its state in a row: median, 99th percentile, longest."""

    tier: str
    chats: int
    p50: float
    p99: float
    longest: float
    goal: float
    met: bool


@dataclass(frozen=True)
class Memory:
    """Bytes that one chat takes at a length, and how many chats fit in a GB."""

    tokens: int
    retention: int
    attention: int
    chats_in_a_gb: tuple[int, int]
    ratio: float
    goal: float | None


def main() -> None:
    """Park, reopen, resume, print, write."""
    parser = argparse.ArgumentParser(prog="make bench-sessions ARGS=…", description=__doc__)
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--resumes", type=int, default=1_000, help="timed from memory and from disk, each")
    arguments = parser.parse_args()
    versions = {name: export_reference(f"parked-{name}", config) for name, config in MODELS.items()}
    with tempfile.TemporaryDirectory(prefix="trident-sessions-") as directory:
        chats = Chats(versions["retention"], Path(directory))
        lengths = chats.park(arguments.chats)
        on_disk = sum(path.stat().st_size for path in Path(directory).iterdir())
        resumed = [chats.time_disk(arguments.resumes), chats.time_memory(arguments.resumes)]
    memory = _memory(versions, [1_000, round(statistics.mean(lengths)), LONGEST])
    _print(resumed, memory, len(lengths), on_disk)
    write_json(
        {
            "machine": machine(),
            "chats": len(lengths),
            "bytes_on_disk": on_disk,
            "resumed": [asdict(each) for each in resumed],
            "memory": [asdict(each) for each in memory],
        },
        RESULTS,
    )


class Chats:
    """Parked chats of one model, each the first tokens of one of a few texts."""

    def __init__(self, version: Path, directory: Path) -> None:
        manifest = read_manifest(version / "manifest.json")
        self._directory = directory
        self._runner = OnnxRuntimeRunner(version, manifest, SETTINGS)
        generator = np.random.default_rng(0)
        self._texts = generator.integers(2, manifest.vocab_size, (NUM_TEXTS, LONGEST + 16))
        self._chats: list[tuple[str, int, int]] = []  # key, text, length

    def park(self, number: int) -> list[int]:
        """Read the texts and park at `number` places in all, evenly spread; the chats' lengths."""
        store = self._open()
        for text, tokens in enumerate(self._texts):
            length = 0
            self._runner.reset(0)
            for stop in _stops(number, text):
                while length < stop:
                    chunk = tokens[length : min(stop, length + SETTINGS.prefill_tokens)]
                    self._runner.prefill(0, chunk, length)
                    length += len(chunk)
                state = self._runner.save(0, KINDS, 0, stop)
                self._chats.append((session_key(f"chat {text}/{stop}"), text, stop))
                store.park(self._chats[-1][0], Parked(tokens[:stop].astype(np.int32), state))
            Console(stderr=True).print(f"{len(self._chats):,} chats are parked …")
            store.close()  # until all of them are on disk: memory holds a part
            store = self._open()
        store.close()
        return [length for _, _, length in self._chats]

    def time_disk(self, number: int) -> Resumed:
        """Go on with chats of a store that was just opened: each comes from disk."""
        order = np.random.default_rng(1).permutation(len(self._chats))[:number]
        with self._opened() as store:
            return _resumed("disk", [self._resume(store, *self._chats[chat]) for chat in order])

    def time_memory(self, number: int) -> Resumed:
        """Go on with chats that were used a moment ago."""
        order = np.random.default_rng(2).permutation(len(self._chats))[:number]
        with self._opened() as store:
            for chat in order:
                self._resume(store, *self._chats[chat])
            return _resumed("memory", [self._resume(store, *self._chats[chat]) for chat in order])

    def _resume(self, store: Sessions, key: str, text: int, length: int) -> float:
        """Milliseconds from a prompt of the whole history and 16 tokens to the state in the row."""
        prompt: NDArray[np.int64] = self._texts[text, : length + 16]
        found: SimpleQueue[str | None] = SimpleQueue()
        start = time.perf_counter()
        prefixes = Prefixes(prompt)
        store.fetch(key, prefixes, len(prefixes) - 2, found.put)
        source = found.get()
        parked = store.take(source, prefixes, len(prefixes) - 2) if source else None
        if parked is None or len(parked.tokens) != length:
            raise RuntimeError(f"chat {text}/{length} is not there")
        self._runner.load(0, KINDS, 0, length, parked.state)
        return (time.perf_counter() - start) * 1e3

    def _open(self) -> Sessions:
        directory = SessionDirectory(self._directory, "bench", 2**40)
        return Sessions(MEMORY_BYTES, directory, MemoryMetrics())

    @contextmanager
    def _opened(self) -> Iterator[Sessions]:
        store = self._open()
        yield store
        store.close()


def _stops(number: int, text: int) -> list[int]:
    """Where one text's share of `number` chats is parked, in tokens."""
    share = len(range(text, number, NUM_TEXTS))
    return [int(stop) for stop in np.unique(np.linspace(16, LONGEST, share).astype(int))]


def _resumed(tier: str, times: Sequence[float]) -> Resumed:
    p50, p99 = (round(float(np.percentile(times, percent)), 2) for percent in (50, 99))
    return Resumed(tier, len(times), p50, p99, round(max(times), 2), GOAL_MS, p99 <= GOAL_MS)


def _memory(versions: dict[str, Path], lengths: list[int]) -> list[Memory]:
    manifests = {name: read_manifest(version / "manifest.json") for name, version in versions.items()}
    rows = []
    for tokens in lengths:
        sizes = {name: _state_bytes(manifest, tokens) for name, manifest in manifests.items()}
        chats = tuple(2**30 // sizes[name] for name in ("retention", "attention"))
        ratio = round(sizes["attention"] / sizes["retention"], 1)
        goal = GOAL_CHATS if tokens == LONGEST else None
        both = (chats[0], chats[1])
        rows.append(Memory(tokens, sizes["retention"], sizes["attention"], both, ratio, goal))
    return rows


def _state_bytes(manifest: Manifest, tokens: int) -> int:
    """What the states after `tokens` tokens take: `kv` as far as it is filled, `recurrent` as it is."""
    total = 0
    for state in manifest.states:
        entries = int(np.prod(state.shape))
        filled = entries * tokens // state.shape[1] if state.kind == "kv" else entries
        total += filled * np.dtype(state.dtype).itemsize
    return total


def _print(resumed: list[Resumed], memory: list[Memory], chats: int, on_disk: int) -> None:
    title = f"{chats:,} parked chats of 16 to {LONGEST:,} tokens, {on_disk / 2**30:.2f} GB: ms to resume"
    table = Table("from", "chats", "p50", "p99", "longest", "goal", title=title, min_width=76)
    for each in resumed:
        goal = f"p99 ≤ {each.goal:g} {'met' if each.met else 'missed'}"
        table.add_row(each.tier, f"{each.chats:,}", f"{each.p50}", f"{each.p99}", f"{each.longest}", goal)
    Console(width=110).print(table)
    table = Table("tokens", title="one chat's state, kB, and chats in 1 GB")
    for name in ("retention", "attention", "chats: retention", "chats: attention", "ratio", "goal"):
        table.add_column(name, justify="right")
    for row in memory:
        table.add_row(
            f"{row.tokens:,}", f"{row.retention / 2**10:,.0f}", f"{row.attention / 2**10:,.0f}",
            f"{row.chats_in_a_gb[0]:,}", f"{row.chats_in_a_gb[1]:,}", f"{row.ratio:g} ×",
            "" if row.goal is None else f"≥ {row.goal:g} {'met' if row.ratio >= row.goal else 'missed'}",
        )  # fmt: skip
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

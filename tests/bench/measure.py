"""Contenders measured in turns, and the rows that a run prints and writes."""

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Row:
    """One comparison: median tokens/s of both, the median of the paired ratios, and its goal if any."""

    name: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    goal: float | None
    met: bool
    spread: str
    streams: int = 1


# ONNX Runtime's idle workers spin for 40 ms before they sleep: they would take a core from whoever is next.
PAUSE_SECONDS = 0.2


def in_turns(contenders: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure every contender once a round, after one round that does not count."""
    figures: dict[str, list[float]] = {name: [] for name in contenders}
    for round_number in range(rounds + 1):
        for name, measure in contenders.items():
            time.sleep(PAUSE_SECONDS)
            figure = measure()
            if round_number:
                figures[name].append(figure)
    return figures


def compare(
    name: str,
    *,
    ours: Sequence[float],
    peer: Sequence[float],
    peer_name: str,
    goal: float | None,
    streams: int = 1,
) -> Row:
    """The row for figures of both sides taken in the same rounds."""
    ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    ratio = statistics.median(ratios)
    return Row(
        name=name,
        ours=round(statistics.median(ours), 1),
        peer=round(statistics.median(peer), 1),
        peer_name=peer_name,
        ratio=round(ratio, 3),
        goal=goal,
        met=goal is None or ratio >= goal,
        spread=f"{min(ratios):.2f}-{max(ratios):.2f}",
        streams=streams,
    )


def machine() -> dict[str, str | int]:
    """What the figures were taken on."""
    return {"processor": _processor(), "cores": len(os.sched_getaffinity(0))}


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if not information.exists():
        return platform.processor() or platform.machine()
    facts = dict(line.split(":", 1) for line in information.read_text().splitlines() if ":" in line)
    facts = {name.strip(): fact.strip() for name, fact in facts.items()}
    vectors = [flag for flag in ("avx2", "avx512f", "avx512_vnni") if flag in facts.get("flags", "").split()]
    return " ".join((facts.get("model name", platform.machine()), *vectors))


def write_results(rows: Sequence[Row], path: Path) -> None:
    """Write the rows and the machine as JSON."""
    write_json({"machine": machine(), "rows": [asdict(row) for row in rows]}, path)


def write_json(content: object, path: Path) -> None:
    """Write beside first and then in place; a path in it becomes its text."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    beside.write_text(json.dumps(content, indent=2, default=str) + "\n")
    beside.replace(path)


def print_table(rows: Sequence[Row]) -> None:
    """The rows for a person."""
    table = Table(
        "what",
        "ours tok/s",
        "peer tok/s",
        "peer",
        "ratio",
        "spread",
        "goal",
        title="Trident, measured in turns",
    )
    for row in rows:
        goal = "" if row.goal is None else f"{row.goal:g} {'met' if row.met else 'missed'}"
        table.add_row(
            row.name, f"{row.ours:.1f}", f"{row.peer:.1f}", row.peer_name,
            f"{row.ratio:.2f}", row.spread, goal,
        )  # fmt: skip
    Console(width=120).print(table)

"""`make systems`: every system trained on real dialogues, proven, served by Triton, and asked a question."""

import argparse
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backends.server import EmbeddedServer
from backends.settings import ServerSettings
from tests.bench.measure import write_json
from tests.ports import free_ports
from tests.systems.recipes import SYSTEMS, System
from tests.systems.stations import Served, Trained, ask, export, train

RESULTS = Path(__file__).parent / "results" / "latest.json"
MOST_CPU_SECONDS = 180


@dataclass(frozen=True)
class Row:
    """One system at the end of its way."""

    system: System
    trained: Trained
    parity: float
    served: Served

    @property
    def problems(self) -> list[str]:
        """What falls short."""
        found = []
        if self.trained.loss >= self.trained.bigram:
            found.append("does not beat the bigrams")
        if self.trained.cpu_seconds > MOST_CPU_SECONDS:
            found.append(f"took more than {MOST_CPU_SECONDS} CPU-seconds")
        return found


def main() -> None:
    """Train and export one after the other, serve all at once, print and write; exit 1 if one falls short."""
    chosen, console = _chosen(), Console(stderr=True)
    with tempfile.TemporaryDirectory(prefix="trident-systems-") as name:
        rows = _go_all_the_way(chosen, Path(name), console)
    _print(rows)
    write_json([asdict(row) for row in rows], RESULTS)
    problems = [f"{row.system.preset} {problem}" for row in rows for problem in row.problems]
    raise SystemExit("; ".join(problems) or 0)


def _chosen() -> list[System]:
    known = [system.preset for system in SYSTEMS]
    parser = argparse.ArgumentParser(prog="make systems ARGS=…", description=__doc__)
    parser.add_argument("presets", nargs="*", metavar="PRESET", help=f"some of {', '.join(known)}")
    presets = parser.parse_args().presets or known
    if unknown := sorted(set(presets) - set(known)):
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    return [system for system in SYSTEMS if system.preset in presets]


def _go_all_the_way(systems: list[System], scratch: Path, console: Console) -> list[Row]:
    repository = scratch / "repository"
    trained, parity = dict[str, Trained](), dict[str, float]()
    for number, system in enumerate(systems, 1):
        console.print(f"{number} of {len(systems)}: {system.preset}, training …")
        trained[system.preset] = train(system, scratch)
        console.print(f"{number} of {len(systems)}: {system.preset}, exporting …")
        parity[system.preset] = export(system, trained[system.preset].production, repository)
    console.print("serving …")
    served = _serve(repository, [system.preset for system in systems])
    return [Row(s, trained[s.preset], parity[s.preset], served[s.preset]) for s in systems]


def _serve(repository: Path, models: list[str]) -> dict[str, Served]:
    grpc_port, http_port, metrics_port = free_ports(3)
    settings = ServerSettings(
        repository=repository, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port
    )
    with EmbeddedServer(settings, show=lambda line: None):
        return {model: ask(f"127.0.0.1:{grpc_port}", model) for model in models}


def _print(rows: list[Row]) -> None:
    table = Table("system", "architecture", title="Every system: trained, proven, served", box=None)
    for title in ("parameters", "CPU s", "loss", "bigram", "unigram", "max |Δlogit|", "tok/s, 8 streams"):
        table.add_column(title, justify="right")
    for row in rows:
        t = row.trained
        losses = (f"{loss:.3f}" for loss in (t.loss, t.bigram, t.unigram))
        table.add_row(
            *(row.system.preset, row.system.origin, f"{t.parameters:,}", f"{t.cpu_seconds:.0f}", *losses),
            *(f"{row.parity:.1e}", f"{row.served.tokens_per_second:.0f}"),
        )
    console = Console(width=150)
    console.print(table)
    for row in rows:
        console.print(f"{row.system.preset}: {row.served.text!r}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()

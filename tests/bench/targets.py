"""`make bench-targets`: every target beside what its bench has measured, out of the result files.

Nothing is measured here. A target whose result file is missing says which bench to run.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.bench import verdicts
from tests.bench.verdicts import Verdict

RESULTS = Path(__file__).parent / "results"
UNREADABLE = (OSError, ValueError, KeyError, IndexError, TypeError)


@dataclass(frozen=True)
class Target:
    """What is to be reached, the file that tells, the command that writes it, and how it is read."""

    what: str
    file: str
    command: str
    judge: Callable[[Any], Iterable[Verdict]]


@dataclass(frozen=True)
class Judged:
    """A target's figures, when they were measured and on what; or why there are none."""

    target: Target
    verdicts: tuple[Verdict, ...] = ()
    when: str = ""
    machine: str = ""
    why: str = ""


BENCH, SERVING, SESSIONS = "make bench", "make bench-serving", "make bench-sessions"
DECODE_ONE = partial(verdicts.beside_best_peer, ("1 stream",))
DECODE_MANY = partial(verdicts.beside_best_peer, ("8 streams", "16 streams"))
PREFILL = partial(verdicts.beside_best_peer, ("prefill",))
TARGETS = (
    Target("decode, 1 stream / best peer", "latest.json", BENCH, DECODE_ONE),
    Target("decode, 1 stream / reading the weights", "latest.json", BENCH, verdicts.beside_memory),
    Target("decode, 8 and 16 streams / best peer", "latest.json", BENCH, DECODE_MANY),
    Target("prefill / best peer", "latest.json", BENCH, PREFILL),
    Target("over HTTP / llama.cpp's best server", "serving.json", SERVING, verdicts.over_http),
    Target("the stack / the engine in-process", "serving.json", SERVING, verdicts.stack_cost),
    Target("first text: the stack - the engine", "serving.json", SERVING, verdicts.stack_delay),
    Target("prefix cache: second turn / cold", "prefix.json", "make bench-prefix", verdicts.second_turn),
    Target("a late token / an early one", "position.json", "make bench-position", verdicts.late_token),
    Target("parked chats", "sessions.json", SESSIONS, verdicts.parked_chats),
    Target(
        "streams beside a long prompt", "prefill.json", "make bench-prefill", verdicts.beside_a_long_prompt
    ),
    Target("experts / a dense layer", "experts.json", "make bench-experts", verdicts.experts),
    Target("perplexity over fp32", "perplexity.json", "make perplexity", verdicts.perplexity),
    Target("GGUF to installed and compared", "export.json", "make bench-export", verdicts.export),
    Target("the gateway alone", "gateway.json", "make bench-gateway", verdicts.gateway),
    Target("guided / not guided", "guided.json", "python -m tests.bench.guided", verdicts.guiding),
    Target("soak", "soak.json", "make soak", verdicts.soak),
    Target("`make serve` to its first token", "start.json", "make bench-start", verdicts.start),
)


def main() -> None:
    """Read and print."""
    print_table([judged(target, RESULTS) for target in TARGETS])


def judged(target: Target, results: Path) -> Judged:
    """The target by the files in `results`."""
    path = results / target.file
    if not path.exists():
        return Judged(target, why=f"not measured: {target.command}")
    try:
        content = json.loads(path.read_text())
        found = tuple(target.judge(content))
        machine = "{processor}, {cores} cores".format(**content["machine"])
    except UNREADABLE as error:
        return Judged(target, why=f"{path.name} is another version's ({error!r}): {target.command}")
    if not found:
        return Judged(target, why=f"not measured: {target.command}")
    return Judged(target, found, f"{datetime.fromtimestamp(path.stat().st_mtime):%d %b %H:%M}", machine)


def print_table(targets: Sequence[Judged]) -> None:
    """A section for each target with a line for each figure, and how many of them are as they should be."""
    table = Table("target", "measured (spread)", "goal", "", "at", title="Targets")
    for each in targets:
        table.add_row(each.target.what, each.why, style="bold")
        for verdict in each.verdicts:
            table.add_row(
                f"  {verdict.subject}", verdict.measured, verdict.goal, mark(verdict), each.when
            )  # fmt: skip
        table.add_section()
    table.caption = summary(targets)
    Console(width=140).print(table)


def summary(targets: Sequence[Judged]) -> str:
    """The figures counted by how they stand to their goals, and the machines that they are from."""
    counts = Counter(mark(verdict) for each in targets for verdict in each.verdicts)
    missing = sum(not each.verdicts for each in targets)
    machines = "; ".join(dict.fromkeys(each.machine for each in targets if each.machine))
    judged = f"{counts['met']} met, {counts['missed']} missed"
    return f"{judged}; not measured: {missing} of {len(targets)} targets\n{machines}"


def mark(verdict: Verdict) -> str:
    """The word for it."""
    return {True: "met", False: "missed", None: ""}[verdict.met]


if __name__ == "__main__":
    main()

"""`make bench`: Trident beside its peers, in turns in one run, on the same weights and bit widths.

The engine in this process, the same graph in a bare ONNX Runtime session, llama.cpp, onnxruntime-genai and
transformers do the same work (workload.py). One stream stands beside the memory as well, which is read as
often as its weights must be. Only the ratios mean anything. The models are the default chat model and a LLaMA
of 32 M random weights.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from rich.console import Console

from tests.bench.bare_session import BareSession
from tests.bench.engine import engine_rate, start_engine
from tests.bench.goals import BARE, MEMORY, goal_beside
from tests.bench.history import print_changes, read_rows
from tests.bench.measure import Row, compare, in_turns, print_table, write_results
from tests.bench.memory_limit import MemoryLimit
from tests.bench.peers import open_peers, say_missing
from tests.bench.weights import NAMES, RefusedError, Weights
from tests.bench.workload import Workload

RESULTS = Path(__file__).parent / "results" / "latest.json"
ENGINE = "engine"

Rate = Callable[[Workload], float]


def main() -> None:
    """Make what is missing, measure, print and write."""
    arguments = parse_arguments()
    before = read_rows(arguments.compare) if arguments.compare else []
    say_missing()
    rows: list[Row] = []
    for model in arguments.models:
        for precision in arguments.precisions:
            try:
                rows += bench(Weights(model), precision, workloads(arguments), arguments.rounds)
            except RefusedError as refusal:
                Console(stderr=True).print(str(refusal))
            write_results(rows, RESULTS)
    print_table(rows)
    print_changes(before, rows)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="*", default=[1, 4, 8, 16, 32])
    parser.add_argument("--models", nargs="+", default=NAMES, choices=NAMES)
    parser.add_argument(
        "--precisions", nargs="+", default=["fp32", "int8", "int4"], choices=["fp32", "int8", "int4"]
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that is not")
    parser.add_argument("--prompt-tokens", type=int, default=32, help="of the streams")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--prefills", type=int, nargs="*", default=[128, 512, 2000], help="prompts' lengths")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="an earlier run's results")
    return parser.parse_args()


def workloads(arguments: argparse.Namespace) -> list[Workload]:
    """Decoding at each number of streams, then prompts of each length alone."""
    decodes = [Workload(n, arguments.prompt_tokens, arguments.new_tokens) for n in arguments.streams]
    return decodes + [Workload(1, length, 1) for length in arguments.prefills]


def bench(weights: Weights, precision: str, each: list[Workload], rounds: int) -> list[Row]:
    """All rows of one model and precision."""
    version, slots = weights.installed(precision), max(workload.streams for workload in each)
    with open_ours(version, slots) as ours:
        return [row for one in each for row in _rows(weights, precision, one, ours, rounds)]


@contextmanager
def open_ours(version: Path, slots: int) -> Iterator[Mapping[str, Rate]]:
    """The engine and its limits: what its graph costs in a bare session, and its weights in memory."""
    engine, bare = start_engine(version, slots), BareSession(version, slots)
    memory = MemoryLimit(version / bare.manifest.graph)
    try:
        yield {ENGINE: partial(engine_rate, engine), BARE: bare.rate, MEMORY: memory.rate}
    finally:
        memory.close()
        engine.close()


def _rows(
    weights: Weights, precision: str, workload: Workload, ours: Mapping[str, Rate], rounds: int
) -> list[Row]:
    """The engine against everyone at one workload."""
    name = f"{weights.model} {precision}, {workload.name}"
    Console(stderr=True).print(f"{name} …")
    with open_peers(weights, precision, workload) as peers:
        rates = {**ours, **{peer.name: peer.rate for peer in peers}}
        if workload.streams > 1 or workload.is_prefill:
            del rates[MEMORY]
        figures = in_turns({who: partial(rate, workload) for who, rate in rates.items()}, rounds)
    engine = figures.pop(ENGINE)
    return [
        compare(
            name,
            ours=engine,
            peer=theirs,
            peer_name=peer,
            goal=goal_beside(peer, workload.streams, precision),
            streams=workload.streams,
        )
        for peer, theirs in figures.items()
    ]


if __name__ == "__main__":
    main()

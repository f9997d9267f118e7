"""`make bench`: Trident beside its peers, in turns in one run, on the same weights.

Three contenders do the same work (workload.py) at each number of streams: the engine in this process, the
same graph in a bare ONNX Runtime session, and transformers in fp32. Only the ratios mean anything. The models
are the default chat model and a LLaMA of 32 M random weights.
"""

import argparse
import subprocess
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from rich.console import Console

from export.sources import find_source
from tests.bench.bare_session import BareSession
from tests.bench.engine import engine_rate, start_engine
from tests.bench.measure import Row, compare, in_turns, print_table, write_results
from tests.bench.reference import llama_directory
from tests.bench.transformers_peer import TransformersPeer
from tests.bench.workload import Workload

HERE = Path(__file__).parent
MODELS = HERE / "models"
REFERENCE = "llama-32m"
RESULTS = HERE / "results" / "latest.json"
BARE_GOAL = 0.9
# streams -> ratio to transformers in fp32
TRANSFORMERS_GOALS = {1: 1.1, 8: 3.0, 16: 1.5}


def main() -> None:
    """Export what is missing, measure, print and write."""
    arguments = parse_arguments()
    rows: list[Row] = []
    for model in arguments.models:
        source = source_of(model)
        peer = TransformersPeer(source)
        for precision in arguments.precisions:
            rows += bench(exported(model, source, precision), f"{model} {precision}", peer, arguments)
    print_table(rows)
    write_results(rows, RESULTS)
    Console().print(
        f"written to {RESULTS.relative_to(Path.cwd()) if RESULTS.is_relative_to(Path.cwd()) else RESULTS}"
    )


def source_of(model: str) -> Path:
    """The weights that all contenders read."""
    return llama_directory(MODELS / REFERENCE) if model == REFERENCE else find_source(model, None)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--models", nargs="+", default=["smollm2", REFERENCE], choices=["smollm2", REFERENCE])
    parser.add_argument("--precisions", nargs="+", default=["fp32", "int8"], choices=["fp32", "int8", "int4"])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that is not")
    parser.add_argument("--prompt-tokens", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=64)
    return parser.parse_args()


def bench(version: Path, name: str, peer: TransformersPeer, arguments: argparse.Namespace) -> list[Row]:
    """All rows of one model and precision."""
    engine = start_engine(version)
    bare = BareSession(version, max(arguments.streams))
    rows: list[Row] = []
    try:
        for streams in arguments.streams:
            Console(stderr=True).print(f"{name}, {streams} streams …")
            workload = Workload(streams, arguments.prompt_tokens, arguments.new_tokens)
            contenders = {
                "engine": partial(engine_rate, engine, workload),
                "bare": partial(bare.rate, workload),
                "transformers": partial(peer.rate, workload),
            }
            figures = in_turns(contenders, arguments.rounds)
            rows += rows_of(f"{name}, {streams} streams", streams, figures)
    finally:
        engine.close()
    return rows


def rows_of(name: str, streams: int, figures: dict[str, list[float]]) -> list[Row]:
    """The engine against both peers."""
    ours: Sequence[float] = figures["engine"]
    goal = TRANSFORMERS_GOALS.get(streams, 1.5)
    return [
        compare(name, ours=ours, peer=figures["bare"], peer_name="bare session", goal=BARE_GOAL),
        compare(name, ours=ours, peer=figures["transformers"], peer_name="transformers fp32", goal=goal),
    ]


def exported(model: str, source: Path, precision: str) -> Path:
    """The engine's version directory, exported to tests/bench/models when it isn't there."""
    repository = MODELS / precision
    command = [sys.executable, "-m", "export", "--model", model, "--precision", precision]
    known = [] if model == "smollm2" else ["--source", str(source)]
    subprocess.run([*command, *known, "--repository", str(repository)], check=True)
    versions = (repository / f"{model}_engine").glob("[0-9]*")
    return max(versions, key=lambda path: int(path.name))


if __name__ == "__main__":
    main()

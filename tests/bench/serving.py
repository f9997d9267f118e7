"""`make bench-serving`: the whole stack over HTTP beside llama.cpp's own server and beside the engine alone.

SmolLM2 by OpenAI's streaming chat: the gateway, Triton and the engine on one side, llama.cpp's server on the
other, the same client program, the same two cores. The servers take turns within each round.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backends.causal_lm.engine import Engine
from backends.server import EmbeddedServer
from backends.settings import ServerSettings
from tests.bench.engine import engine_rate, start_engine
from tests.bench.http_client import Answer, Latency, Load, latency, run_load, tokens_per_second
from tests.bench.llama_cpp import LlamaServer
from tests.bench.measure import Row, compare, in_turns, machine, print_table, write_json
from tests.bench.peers import llama_cpp_launches, say_missing
from tests.bench.weights import Weights
from tests.bench.workload import Workload
from tests.e2e.gateway_process import running_gateway
from tests.ports import free_ports

RESULTS = Path(__file__).parent / "results" / "serving.json"
MODEL = "smollm2"
PROMPT = "Write a long story about a lighthouse keeper who repairs clocks, and do not stop early."
CONTEXT = 512
PROMPT_TOKENS = 57  # what the template makes of the prompt with a number of six digits
OURS, ENGINE = "trident", "engine in-process"
PEER_GOAL, STACK_GOAL = 1.2, 0.85
FIRST_GOAL_MS = 15.0  # over HTTP, beside the engine alone


@dataclass(frozen=True)
class Server:
    """Something that speaks OpenAI's API, and the fields that make it write exactly as much as asked."""

    name: str
    url: str
    extra: dict[str, object]

    def rate(self, load: Load, kept: list[Answer]) -> float:
        """Tokens per second of one run of the load, whose answers are kept."""
        answers = run_load(self.url, MODEL, load, self.extra)
        kept += answers
        return tokens_per_second(answers)


@dataclass(frozen=True)
class Felt:
    """The latencies of one server under one load."""

    name: str
    who: str
    streams: int
    latency: Latency


@contextmanager
def our_stack(repository: Path) -> Iterator[str]:
    """Triton and the gateway as `trident serve` starts them; the gateway's address."""
    grpc, http, metrics, port = free_ports(4)
    settings = ServerSettings(repository=repository, grpc_port=grpc, http_port=http, metrics_port=metrics)
    with EmbeddedServer(settings), running_gateway(port, f"127.0.0.1:{grpc}") as gateway:
        yield gateway.url


@contextmanager
def servers(precision: str, load: Load) -> Iterator[list[Server]]:
    """Ours first, then llama.cpp's in every build and type of that bit width, with a slot for each client."""
    weights = Weights(MODEL)
    with ExitStack() as stack:
        ours = stack.enter_context(our_stack(weights.repository(precision)))
        found = [Server(OURS, ours, {"repetition_penalty": 1.0, "min_tokens": load.new_tokens})]
        for launch in llama_cpp_launches():
            for block_type, path in weights.gguf(precision).items():
                server = LlamaServer(launch, path, slots=load.clients, context=CONTEXT)
                stack.callback(server.close)
                extra = {"ignore_eos": True, "cache_prompt": False}
                found.append(Server(f"{launch.name} {block_type}", server.url, extra))
        yield found


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="make bench-serving ARGS=…", description=__doc__.splitlines()[0])
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 16])
    parser.add_argument("--precisions", nargs="+", default=["int8"], choices=["fp32", "int8", "int4"])
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that is not")
    parser.add_argument("--new-tokens", type=int, default=96)
    return parser.parse_args()


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    say_missing()
    rows: list[Row] = []
    felt: list[Felt] = []
    for precision in arguments.precisions:
        engine = start_engine(Weights(MODEL).installed(precision), slots=max(arguments.clients))
        try:
            for clients in arguments.clients:
                load = Load(clients, PROMPT, arguments.new_tokens)
                found = bench(precision, load, engine, arguments.rounds)
                rows += found[0]
                felt += found[1]
        finally:
            engine.close()
    print_table(rows)
    print_latencies(felt)
    content = {"machine": machine(), "rows": [*map(asdict, rows)], "latencies": [*map(asdict, felt)]}
    write_json(content, RESULTS)


def bench(precision: str, load: Load, engine: Engine, rounds: int) -> tuple[list[Row], list[Felt]]:
    """All rows of one precision and number of clients."""
    name = f"{MODEL} {precision} over HTTP, {load.clients} clients"
    Console(stderr=True).print(f"{name} …")
    workload = Workload(load.clients, PROMPT_TOKENS, load.new_tokens)
    with servers(precision, load) as found:
        kept: dict[str, list[Answer]] = {who: [] for who in (*(server.name for server in found), ENGINE)}
        contenders: dict[str, Callable[[], float]] = {
            server.name: partial(server.rate, load, kept[server.name]) for server in found
        }
        contenders[ENGINE] = partial(engine_rate, engine, workload, kept[ENGINE])
        figures = in_turns(contenders, rounds)
    goals = dict.fromkeys(contenders, PEER_GOAL) | {ENGINE: STACK_GOAL}
    rows = [
        compare(name, ours=figures[OURS], peer=theirs, peer_name=peer, goal=goals[peer], streams=load.clients)
        for peer, theirs in figures.items()
        if peer != OURS
    ]
    return rows, [Felt(name, who, load.clients, latency(answers)) for who, answers in kept.items()]


def print_latencies(felt: Sequence[Felt]) -> None:
    """Milliseconds to the first text, and between two texts of one stream."""
    table = Table("what", "who", "first p50", "p99", "between p50", "p99", title="Milliseconds")
    for each in felt:
        figures = (*each.latency.first, *each.latency.between)
        table.add_row(each.name, each.who, *(f"{figure:.1f}" for figure in figures))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()

"""What guiding costs a token: the engine in this process, guided and not, in turns.

`python -m tests.bench.guided VERSION_DIRECTORY`, of a model as large as those that are served.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest, Output
from backends.causal_lm.settings import EngineSettings
from tests.bench.engine import Waiting
from tests.bench.measure import machine, write_json

GOAL = 1.10
RESULTS = Path(__file__).parent / "results" / "guided.json"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "maxItems": 4},
        "address": {
            "type": "object",
            "properties": {
                "street": {"type": "string", "maxLength": 80},
                "zip": {"type": "string", "pattern": "^[0-9]{5}$"},
            },
            "required": ["street", "zip"],
            "additionalProperties": False,
        },
    },
    "required": ["name", "age", "tags", "address"],
    "additionalProperties": False,
}
# An array of such people does not end before the tokens do.
GUIDES = {
    "JSON schema": ("json_schema", json.dumps({"type": "array", "items": PERSON, "minItems": 500})),
    "any JSON": ("json_schema", '{"type": "array", "minItems": 500}'),
    "regex": ("regex", "([A-Za-z]+ ){500}"),
}
# What is drawn asks more of a guide, and more again where the likeliest alone are kept.
CHOOSING = {
    "greedy": {"temperature": 0.0},
    "drawn": {"temperature": 1.0},
    "drawn, top-p": {"temperature": 0.8, "top_p": 0.9},
}


class Timed(Waiting):
    """A sink that knows when the first and the last token came."""

    def __init__(self) -> None:
        super().__init__()
        self.first = self.last = 0.0
        self.tokens = 0

    def send(self, output: Output, final: bool) -> None:
        self.last = time.perf_counter()
        self.first = self.first or self.last
        self.tokens = output.num_output_tokens
        super().send(output, final)


def milliseconds_a_token(
    engine: Engine, guide: tuple[str, str] | None, *, choosing: str, streams: int, tokens: int
) -> float:
    """The mean over the streams, from their first tokens to their last."""
    values = {"max_tokens": tokens, "min_tokens": tokens, "stream": True, **CHOOSING[choosing]}
    if guide is not None:
        values |= dict(zip(("guided_decoding_guide_type", "guided_decoding_guide"), guide, strict=True))
    sinks = [Timed() for _ in range(streams)]
    for row, sink in enumerate(sinks):
        prompt = list(range(1000 + row, 1032 + row))
        engine.submit(
            GenerationRequest.from_values(f"{row}", {**values, "input_ids": prompt}, engine.manifest), sink
        )
    for sink in sinks:
        sink.ended.wait()
        if sink.error or sink.tokens != tokens:
            raise RuntimeError(
                sink.error or f"{sink.tokens} tokens of {tokens}: the guide has ended too early"
            )
    return 1000 * statistics.mean((sink.last - sink.first) / (tokens - 1) for sink in sinks)


def main() -> None:
    """Measure every guide in turns with none, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("version", type=Path)
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--choosing", choices=CHOOSING, nargs="+", default=list(CHOOSING))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    arguments = parser.parse_args()
    # Without drafts: how many of them are right depends on the text, which a guide changes.
    engine = load_engine(arguments.version, EngineSettings(speculative_tokens=0), MemoryMetrics())
    try:
        rows = [
            row
            for choosing in arguments.choosing
            for streams in arguments.streams
            for row in measured(engine, choosing, streams, arguments)
        ]
    finally:
        engine.close()
    show(rows)
    write_json({"machine": machine(), "model": engine.manifest.model, "rows": rows}, RESULTS)


def measured(
    engine: Engine, choosing: str, streams: int, arguments: argparse.Namespace
) -> list[dict[str, object]]:
    """One row per guide, after a round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name in ("none", *GUIDES)}
    for number in range(arguments.rounds + 1):
        for name in taken:
            figure = milliseconds_a_token(
                engine,
                GUIDES.get(name),
                choosing=choosing,
                streams=streams,
                tokens=arguments.tokens,
            )
            if number:
                taken[name].append(figure)
    rows: list[dict[str, object]] = []
    for name in GUIDES:
        ratios = [mine / plain for mine, plain in zip(taken[name], taken["none"], strict=True)]
        ratio = statistics.median(ratios)
        rows.append(
            {
                "guide": name,
                "choosing": choosing,
                "streams": streams,
                "unguided_ms": round(statistics.median(taken["none"]), 2),
                "guided_ms": round(statistics.median(taken[name]), 2),
                "ratio": round(ratio, 3),
                "spread": f"{min(ratios):.2f}-{max(ratios):.2f}",
                "met": ratio <= GOAL,
            }
        )
    return rows


def show(rows: list[dict[str, object]]) -> None:
    """The rows for a person."""
    table = Table(*rows[0], title=f"Guided, in turns with unguided; the goal is {GOAL:g}")
    for row in rows:
        table.add_row(*map(str, row.values()))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

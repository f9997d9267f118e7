"""`make bench-speculation`: one stream with drafts looked up in its text and without, in turns.

Where an answer repeats what was said, a draft saves most of the steps; where nothing repeats, looking for one
may cost little. The texts are the same token by token: what is measured is only how soon they come.
"""

import argparse
import statistics
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest, Output
from backends.causal_lm.settings import EngineSettings
from tests.bench.engine import Waiting, newest_version
from tests.bench.measure import machine, write_json

REPOSITORY = Path(__file__).parents[2] / "model_repository"
RESULTS = Path(__file__).parent / "results" / "speculation.json"
CODE = """
def area_of_square(side):
    if side < 0:
        raise ValueError("side must not be negative")
    return side * side

def area_of_rectangle(width, height):
    if width < 0 or height < 0:
        raise ValueError("width and height must not be negative")
    return width * height

def area_of_circle(radius):
    if radius < 0:
        raise ValueError("radius must not be negative")
    return 3.14159 * radius * radius
"""
REPEATING, CHAT = "repeating", "chat"
PROMPTS = {
    REPEATING: [
        f"Repeat this code, and change 3.14159 to math.pi. Write nothing else.\n```python{CODE}```",
        f"Copy this text word by word: {' '.join(__doc__.split())}",
    ],
    CHAT: [
        "What makes a good cup of coffee?",
        "Tell me a short story about a lighthouse keeper and a storm.",
        "Explain in a few sentences why the sky is blue.",
    ],
}


# Beside the model's own defaults: a penalty on repetition would keep a small model from repeating at all.
SAMPLING: dict[str, dict[str, object]] = {REPEATING: {"repetition_penalty": 1.0}, CHAT: {}}


class Answer(Waiting):
    """Keeps the one response."""

    def send(self, output: Output, final: bool) -> None:
        self.output = output
        super().send(output, final)


@dataclass
class Contender:
    """An engine with drafts of up to `tokens`, and the rates that it was measured at."""

    tokens: int
    engine: Engine
    tokenizer: Tokenizer
    metrics: MemoryMetrics
    rates: list[float]

    def answer(self, kind: str, prompt: str, new_tokens: int) -> Output:
        """One turn of a chat in ChatML."""
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        values = {"input_ids": self.tokenizer.encode(text).ids, "max_tokens": new_tokens, **SAMPLING[kind]}
        sink = Answer()
        self.engine.submit(GenerationRequest.from_values("", values, self.engine.manifest), sink)
        sink.ended.wait()
        if sink.error:
            raise RuntimeError(sink.error)
        return sink.output


def main() -> None:
    """Measure, print and write."""
    arguments = parse_arguments()
    version = newest_version(arguments.repository / f"{arguments.model}_engine")
    contenders = [start(version, tokens) for tokens in arguments.tokens]
    rows: list[dict[str, object]] = []
    try:
        for kind in PROMPTS:
            measure(contenders, kind, arguments)
            rows += [row(kind, contender, contenders[0]) for contender in contenders]
    finally:
        for contender in contenders:
            contender.engine.close()
    show(rows)
    write_json({"machine": machine(), "model": str(version), "rows": rows}, RESULTS)


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="make bench-speculation ARGS=…", description=__doc__.splitlines()[0]
    )
    parser.add_argument("--repository", type=Path, default=REPOSITORY)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument(
        "--tokens", type=int, nargs="+", default=[0, 4, 8, 16], help="longest drafts; the first is the peer"
    )
    parser.add_argument("--rounds", type=int, default=5, help="counted rounds, after one that is not")
    parser.add_argument("--new-tokens", type=int, default=128)
    return parser.parse_args()


def start(version: Path, tokens: int) -> Contender:
    """An engine over the same files."""
    metrics = MemoryMetrics()
    settings = EngineSettings(speculative_tokens=tokens, slots=2, prefix_cache_bytes=0)
    engine = load_engine(version, settings, metrics)
    return Contender(tokens, engine, Tokenizer.from_file(str(version / "tokenizer.json")), metrics, [])


def measure(contenders: list[Contender], kind: str, arguments: argparse.Namespace) -> None:
    """Every contender once a round, after one round that doesn't count; all must say the same."""
    for contender in contenders:
        contender.rates.clear()
        contender.metrics.values.clear()
    for number in range(arguments.rounds + 1):
        said = []
        for contender in contenders:
            rate, tokens = run(contender, kind, arguments.new_tokens)
            said.append(tokens)
            contender.rates += [rate] if number else []
        assert all(tokens == said[0] for tokens in said), "drafts have changed a text"


def run(contender: Contender, kind: str, new_tokens: int) -> tuple[float, list[tuple[int, ...]]]:
    """Tokens per second behind the first ones, one prompt after another, and the tokens."""
    seconds, said = 0.0, []
    for prompt in PROMPTS[kind]:
        output = contender.answer(kind, prompt, new_tokens)
        assert output.timings is not None
        seconds += output.timings.decode_ns / 1e9
        said.append(output.token_ids)
    return sum(len(tokens) - 1 for tokens in said) / seconds, said


def row(kind: str, contender: Contender, peer: Contender) -> dict[str, object]:
    """Medians; the ratio is that of the same rounds."""
    ratios = [ours / theirs for ours, theirs in zip(contender.rates, peer.rates, strict=True)]
    count = contender.metrics.values
    drafted = count["spec_decode_num_draft_tokens_total"]
    return {
        "text": kind,
        "speculative_tokens": contender.tokens,
        "tokens_per_second": round(statistics.median(contender.rates), 1),
        "ratio": round(statistics.median(ratios), 3),
        "spread": f"{min(ratios):.2f}-{max(ratios):.2f}",
        "accepted": round(count["spec_decode_num_accepted_tokens_total"] / drafted, 3) if drafted else None,
    }


def show(rows: list[dict[str, object]]) -> None:
    """The rows for a person."""
    table = Table(*rows[0], title="One stream, with and without drafts")
    for values in rows:
        table.add_row(*("" if value is None else str(value) for value in values.values()))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

"""What is done to each system, by the commands that a user has: train, export, serve."""

import asyncio
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from client.triton import AsyncTritonClient
from client.wire import GenerateRequest
from export.comparison import read_comparison
from tests.systems.recipes import System

PROMPT = "Hi! What did you do at the weekend?"
STREAMS, NEW_TOKENS = 8, 64


@dataclass(frozen=True)
class Trained:
    """A finished run: losses in nats per learned token of the validation split."""

    production: Path
    cpu_seconds: float
    parameters: int
    loss: float
    bigram: float
    unigram: float


@dataclass(frozen=True)
class Served:
    """An answer through Triton, and the new tokens per second of STREAMS streams."""

    text: str
    tokens_per_second: float


def train(system: System, scratch: Path) -> Trained:
    """Train from random weights with `trident train`."""
    recipe = scratch / f"{system.preset}.json"
    recipe.write_text(system.recipe.model_dump_json(indent=2), encoding="utf-8")
    output = scratch / "runs" / system.preset
    before = _children_seconds()
    _run("training", "train", str(recipe), "--output", str(output))
    seconds = _children_seconds() - before
    events = [json.loads(line) for line in (output / "events.jsonl").read_text().splitlines()]
    end = events[-1]
    return Trained(
        production=output / "production",
        cpu_seconds=seconds,
        parameters=events[0]["parameters"],
        loss=end["loss"],
        bigram=end["bigram"],
        unigram=end["unigram"],
    )


def export(system: System, production: Path, repository: Path) -> float:
    """Prove and install with `trident export`; the largest difference of a logit from PyTorch's."""
    source = ("--source", str(production), "--repository", str(repository), "--precision", "fp32")
    _run("export", "--model", system.preset, *source)
    (path,) = repository.glob(f"{system.preset}_engine/*/comparison.json")
    return max(scenario.max_error for scenario in read_comparison(path.parent).scenarios)


def ask(url: str, model: str) -> Served:
    """A chat answer from the served model, then STREAMS of them at once."""
    return asyncio.run(_ask(url, model))


async def _ask(url: str, model: str) -> Served:
    async with AsyncTritonClient(url) as client:
        text, _ = await _answer(client, model, seed=0)
        start = time.perf_counter()
        answers = await asyncio.gather(*(_answer(client, model, seed=seed) for seed in range(STREAMS)))
        seconds = time.perf_counter() - start
    return Served(text, sum(tokens for _, tokens in answers) / seconds)


async def _answer(client: AsyncTritonClient, model: str, *, seed: int) -> tuple[str, int]:
    request = GenerateRequest(
        messages=[{"role": "user", "content": PROMPT}],
        max_tokens=NEW_TOKENS,
        min_tokens=NEW_TOKENS,
        temperature=0.7,
        seed=seed,
    )
    responses = [response async for response in client.generate(model, request)]
    return "".join(response.text_output for response in responses), responses[-1].num_output_tokens


def _run(module: str, *arguments: str) -> None:
    command: Sequence[str] = (sys.executable, "-m", module, *arguments)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}")


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime

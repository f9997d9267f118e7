"""One client program for every server that speaks OpenAI's streaming chat: throughput, first token, gaps."""

import asyncio
import json
import secrets
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

TIMEOUT = httpx.Timeout(300.0)
EVENT = "data: "
DONE = "[DONE]"


@dataclass(frozen=True)
class Answer:
    """One stream: when it was asked for, when text came (seconds), and how many tokens it had."""

    asked: float
    arrivals: tuple[float, ...]
    num_tokens: int


@dataclass(frozen=True)
class Latency:
    """Milliseconds, median and 99th percentile: to the first text, and between two texts of one stream."""

    first: tuple[float, float]
    between: tuple[float, float]


@dataclass(frozen=True)
class Load:
    """`clients` conversations at once with a server, each of `new_tokens` tokens."""

    clients: int
    prompt: str
    new_tokens: int

    def body(self, model: str) -> dict[str, object]:
        """A request that both sides understand, new each time, so that nobody's prompt cache answers it."""
        number = secrets.randbelow(10**6)
        return {
            "model": model,
            "messages": [{"role": "user", "content": f"Number {number}: {self.prompt}"}],
            "max_tokens": self.new_tokens,
            "temperature": 0.0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


def run_load(url: str, model: str, load: Load, extra: dict[str, object]) -> list[Answer]:
    """All clients at once; `extra` are the fields that only this server knows."""
    return asyncio.run(_all(url, model, load, extra))


def tokens_per_second(answers: Sequence[Answer]) -> float:
    """Of all clients together, from the first request to the last text."""
    began, ended = min(a.asked for a in answers), max(a.arrivals[-1] for a in answers)
    return sum(answer.num_tokens for answer in answers) / (ended - began)


def latency(answers: Sequence[Answer]) -> Latency:
    """What a user feels."""
    firsts = [1e3 * (answer.arrivals[0] - answer.asked) for answer in answers]
    gaps = [
        1e3 * (later - sooner)
        for answer in answers
        for sooner, later in zip(answer.arrivals, answer.arrivals[1:], strict=False)
    ]
    return Latency(_median_and_p99(firsts), _median_and_p99(gaps))


def _median_and_p99(values: Sequence[float]) -> tuple[float, float]:
    ordered = sorted(values)
    return round(statistics.median(ordered), 2), round(ordered[int(0.99 * (len(ordered) - 1))], 2)


async def _all(url: str, model: str, load: Load, extra: dict[str, object]) -> list[Answer]:
    limits = httpx.Limits(max_connections=load.clients)
    async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT, limits=limits, trust_env=False) as client:
        bodies = [load.body(model) | extra for _ in range(load.clients)]
        return await asyncio.gather(*(_one(client, body, load.new_tokens) for body in bodies))


async def _one(client: httpx.AsyncClient, body: dict[str, object], new_tokens: int) -> Answer:
    asked, arrivals, num_tokens = time.perf_counter(), [], 0
    async with client.stream("POST", "/v1/chat/completions", json=body) as response:
        if response.status_code != 200:
            raise RuntimeError(f"status {response.status_code}: {(await response.aread()).decode()[:500]}")
        async for line in response.aiter_lines():
            if not line.startswith(EVENT) or line == EVENT + DONE:
                continue
            event = json.loads(line.removeprefix(EVENT))
            if "error" in event:
                raise RuntimeError(f"the stream broke off: {event['error']}")
            if event["choices"] and event["choices"][0]["delta"].get("content"):
                arrivals.append(time.perf_counter())
            if event.get("usage"):
                num_tokens = event["usage"]["completion_tokens"]
    if num_tokens != new_tokens:
        raise RuntimeError(f"{num_tokens} tokens came, {new_tokens} were asked for")
    return Answer(asked, tuple(arrivals), num_tokens)

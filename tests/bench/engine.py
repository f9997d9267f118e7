"""Trident's engine, in this process, without Triton."""

import threading
import time
from pathlib import Path

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest, Output
from backends.causal_lm.settings import EngineSettings
from tests.bench.http_client import Answer
from tests.bench.workload import Workload


class Waiting:
    """A sink that lets the measurement wait for the end."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.error = ""

    def send(self, output: Output, final: bool) -> None:
        if final:
            self.ended.set()

    def fail(self, code: str, message: str) -> None:
        self.error = message
        self.ended.set()

    def is_cancelled(self) -> bool:
        return False


class Arrivals(Waiting):
    """A sink that notes when tokens came."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []

    def send(self, output: Output, final: bool) -> None:
        self.times.append(time.perf_counter())
        super().send(output, final)


def newest_version(directory: Path) -> Path:
    """The version directory that a server would take."""
    return max(directory.glob("[0-9]*"), key=lambda path: int(path.name))


def start_engine(version: Path, slots: int) -> Engine:
    """The engine of an installed version directory, but for `slots` with the settings of a server.

    It remembers no prompts: every round asks the same, and is to read it. It drafts nothing: a random prompt
    makes a model repeat itself, and the peers would be measured at something else.
    """
    slots = max(slots, EngineSettings().slots)
    settings = EngineSettings(slots=slots, prefix_cache_bytes=0, speculative_tokens=0)
    return load_engine(version, settings, MemoryMetrics())


def engine_rate(engine: Engine, workload: Workload, kept: list[Answer] | None = None) -> float:
    """Tokens per second of the whole workload, prompts included; `kept` is told when they came."""
    values = {
        "max_tokens": workload.new_tokens,
        "min_tokens": workload.new_tokens,
        "temperature": 0.0,
        "repetition_penalty": 1.0,
        "stream": True,
    }
    requests = [
        GenerationRequest.from_values(f"bench-{row}", {**values, "input_ids": prompt}, engine.manifest)
        for row, prompt in enumerate(workload.prompts(engine.manifest.vocab_size))
    ]
    sinks = [Arrivals() for _ in requests]
    start = time.perf_counter()
    for request, sink in zip(requests, sinks, strict=True):
        engine.submit(request, sink)
    for sink in sinks:
        sink.ended.wait()
        if sink.error:
            raise RuntimeError(sink.error)
    duration = time.perf_counter() - start
    if kept is not None:
        kept += [Answer(start, tuple(sink.times), workload.new_tokens) for sink in sinks]
    return workload.tokens / duration

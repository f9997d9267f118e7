"""Fixtures of the engine's tests: tiny models on disk, a sink that records, an engine that is always closed."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from backends.causal_lm.engine import Engine, load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.request import GenerationRequest, Output
from backends.causal_lm.settings import EngineSettings
from tests.backends.tiny_graph import tiny_tokenizer, write_model

MODELS = {
    "attention": ("attention", "attention"),
    "retention": ("retention", "retention"),
    "both": ("attention", "retention"),
}


class RecordingSink:
    """Keeps what an engine sends, and objects to anything after the end."""

    def __init__(self, on_send: Callable[[Output], None] | None = None) -> None:
        self.outputs: list[Output] = []
        self.failure: tuple[str, str] | None = None
        self.ends = 0
        self.cancelled = False
        self._ended = threading.Event()
        self._on_send = on_send

    def send(self, output: Output, final: bool) -> None:
        assert not self.ends, "sent after the end"
        self.outputs.append(output)
        if final:
            self._end()
        elif self._on_send:
            self._on_send(output)

    def fail(self, code: str, message: str) -> None:
        assert message.startswith(f"{code}: ")
        self.failure = (code, message)
        self._end()

    def is_cancelled(self) -> bool:
        return self.cancelled

    def wait(self) -> "RecordingSink":
        assert self._ended.wait(60), "the request never ended"
        return self

    def _end(self) -> None:
        self.ends += 1
        self._ended.set()

    @property
    def text(self) -> str:
        return "".join(output.text for output in self.outputs)

    @property
    def token_ids(self) -> list[int]:
        return [token for output in self.outputs for token in output.token_ids]

    @property
    def reason(self) -> str:
        return self.outputs[-1].finish_reason


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return tiny_tokenizer()


@pytest.fixture(scope="session")
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, mixers) for name, mixers in MODELS.items()}


@pytest.fixture(params=list(MODELS))
def directory(request: pytest.FixtureRequest, model_directories: dict[str, Path]) -> Path:
    """A version directory, one per kind of state."""
    return model_directories[request.param]


class Harness:
    """Starts engines over a directory and asks them."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.metrics = MemoryMetrics()

    def start(self, directory: Path, **settings: int) -> Engine:
        self.metrics = MemoryMetrics()
        self.engines.append(load_engine(directory, EngineSettings(**{"threads": 1} | settings), self.metrics))
        return self.engines[-1]

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


def make_request(
    engine: Engine, prompt: str | list[int], request_id: str = "", **values: object
) -> GenerationRequest:
    ids = tiny_tokenizer().encode(prompt).ids if isinstance(prompt, str) else prompt
    return GenerationRequest.from_values(request_id, {"input_ids": ids, **values}, engine.manifest)


def ask(engine: Engine, prompt: str | list[int], request_id: str = "", **values: object) -> RecordingSink:
    """Submit and return the sink at once."""
    sink = RecordingSink()
    engine.submit(make_request(engine, prompt, request_id, **values), sink)
    return sink

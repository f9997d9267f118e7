"""Fixtures of the engine's tests: tiny models on disk, a recording sink, engines that are always closed."""

import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.causal_lm.caching.sessions import Sessions
from backends.causal_lm.engine import Engine
from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest, Output
from backends.causal_lm.runtime.runner import Runner
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.runtime.state import Bytes
from backends.causal_lm.settings import EngineSettings
from backends.environment import ServerEnvironment
from tests.backends.tiny_graph import tiny_tokenizer, write_model

TOKENIZER = tiny_tokenizer()
MODELS = {
    "attention": ("attention", "attention"),
    "retention": ("retention", "retention"),
    "both": ("attention", "retention"),
}
FIGURES = ("epistemic", "thought_budget", "confidence", "aleatoric")


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
def model_directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {name: write_model(root / name, mixers) for name, mixers in MODELS.items()}


@pytest.fixture(scope="session")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A version directory whose graph has FIGURES as extra outputs."""
    return write_model(tmp_path_factory.mktemp("telling"), MODELS["both"], figures=FIGURES)


@pytest.fixture(params=list(MODELS))
def directory(request: pytest.FixtureRequest, model_directories: dict[str, Path]) -> Path:
    """A version directory, one per kind of state."""
    return model_directories[request.param]


@pytest.fixture
def environment(tmp_path: Path) -> ServerEnvironment:
    """A wheel of three small files where Triton's megabytes would be."""
    made = ServerEnvironment(
        root=tmp_path / ".triton", python_version="3.11", wheel=tmp_path / "pytriton", libpython=tmp_path
    )
    for name in ("libtriton_python.so", "triton_python_backend_utils.py"):
        (made.backends / "python").mkdir(parents=True, exist_ok=True)
        (made.backends / "python" / name).write_text(name)
    made.stub.parent.mkdir(parents=True)
    made.stub.write_text("stub")
    made.stub.chmod(0o755)
    return made


class WatchedRunner:
    """A real runner that writes down its calls, waits at a gate, and fails where it is told to."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self.calls: list[tuple[str, int]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.fail: Callable[[str, int], bool] = lambda kind, number: False

    @property
    def figures(self) -> NDArray[np.float32]:
        return self._runner.figures

    def prefill(self, row: int, tokens: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        self._before("prefill", len(tokens))
        return self._runner.prefill(row, tokens, start)

    def decode(self, tokens: NDArray[np.int64], positions: NDArray[np.int64]) -> NDArray[np.float32]:
        self._before("decode", len(tokens))
        return self._runner.decode(tokens, positions)

    @property
    def most_verified(self) -> int:
        return self._runner.most_verified

    def verify(
        self, row: int, tokens: NDArray[np.int64], start: int
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self._before("verify", len(tokens))
        return self._runner.verify(row, tokens, start)

    def keep(self, row: int, count: int) -> None:
        self._runner.keep(row, count)

    @property
    def decodes_as_it_reads(self) -> bool:
        return self._runner.decodes_as_it_reads

    def save(self, row: int, kinds: Collection[str], start: int, stop: int) -> Bytes:
        self._before("save", stop - start)
        return self._runner.save(row, kinds, start, stop)

    def load(self, row: int, kinds: Collection[str], start: int, stop: int, saved: Bytes) -> None:
        self._before("load", stop - start)
        self._runner.load(row, kinds, start, stop, saved)

    def reset(self, row: int) -> None:
        self._runner.reset(row)

    def move(self, source: int, target: int, length: int) -> None:
        self._before("move", length)
        self._runner.move(source, target, length)

    def _before(self, kind: str, size: int) -> None:
        assert self.gate.wait(60)
        self.calls.append((kind, size))
        if self.fail(kind, sum(call[0] == kind for call in self.calls)):
            raise RuntimeError(f"{kind} broke")


def racing_clock() -> float:
    """Seconds a thousand times as fast, by which a stream's next message is due after every step."""
    return 1000 * time.perf_counter()


class Harness:
    """Starts engines over a directory, whose runner can be watched."""

    def __init__(self) -> None:
        self.engines: list[Engine] = []
        self.metrics = MemoryMetrics()

    def start(
        self,
        directory: Path,
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.perf_counter,
        **values: int,
    ) -> Engine:
        plain = {"threads": 1, "speculative_tokens": 0, "prefix_cache_bytes": 0}
        settings = EngineSettings(**plain | values)  # type: ignore[arg-type]
        manifest = read_manifest(directory / "manifest.json")
        self.metrics = MemoryMetrics()
        self.runner = WatchedRunner(OnnxRuntimeRunner(directory, manifest, settings))
        engine = Engine(
            self.runner,
            TOKENIZER,
            manifest=manifest,
            settings=settings,
            metrics=self.metrics,
            sessions=sessions,
            clock=clock,
        )
        self.engines.append(engine)
        return engine

    @contextmanager
    def standing_still(self) -> Iterator[None]:
        """No step begins inside."""
        self.runner.gate.clear()
        yield
        self.runner.gate.set()

    def count(self, name: str) -> float:
        return self.metrics.values[name]

    def close(self) -> None:
        for engine in self.engines:
            engine.close()


@pytest.fixture
def harness() -> Iterator[Harness]:
    harness = Harness()
    yield harness
    harness.close()


def make_request(
    engine: Engine, text: str | list[int], request_id: str = "", /, **values: object
) -> GenerationRequest:
    ids = TOKENIZER.encode(text).ids if isinstance(text, str) else text
    return GenerationRequest.from_values(request_id, {"input_ids": ids, **values}, engine.manifest)


def ask(engine: Engine, text: str | list[int], request_id: str = "", /, **values: object) -> RecordingSink:
    """Submit and return the sink at once."""
    sink = RecordingSink()
    engine.submit(make_request(engine, text, request_id, **values), sink)
    return sink

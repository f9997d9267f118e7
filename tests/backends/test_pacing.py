"""How often a stream gets a message, by how many streams run."""

from pathlib import Path

import pytest

from backends.causal_lm.engine import Engine
from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.scheduling.pacing import message_interval
from backends.causal_lm.settings import EngineSettings
from tests.backends.conftest import TOKENIZER, Harness, ask

PROMPT = "the cat sat on the mat"


@pytest.mark.parametrize(
    ("running", "cores", "seconds"),
    [(1, 1, 0.0), (4, 1, 0.0), (8, 2, 0.048), (16, 2, 0.096), (64, 2, 0.1), (16, 16, 0.012)],
)
def test_messages_take_an_eighth_of_the_cores_and_a_tenth_of_a_second_at_most(
    running: int, cores: int, seconds: float
) -> None:
    assert message_interval(running, cores) == pytest.approx(seconds)


class SteppingClock:
    """A clock that moves a tenth of a millisecond per reading: what a run takes is the same everywhere."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.0001
        return self.now


@pytest.mark.parametrize(("streams", "least"), [(2, 15), (16, 1)])
def test_with_many_streams_messages_are_fewer_and_fuller(
    harness: Harness, model_directories: dict[str, Path], streams: int, least: int
) -> None:
    harness.start(model_directories["both"])
    settings, manifest = EngineSettings(threads=1), read_manifest(model_directories["both"] / "manifest.json")
    engine = Engine(
        harness.runner,
        TOKENIZER,
        manifest=manifest,
        settings=settings,
        metrics=MemoryMetrics(),
        clock=SteppingClock(),
    )
    harness.engines.append(engine)
    sinks = [ask(engine, PROMPT, max_tokens=25, min_tokens=25, stream=True) for _ in range(streams)]
    messages = [len(sink.wait().outputs) for sink in sinks]
    assert min(messages) >= least
    assert {sink.text for sink in sinks} == {sinks[0].text}
    assert sinks[0].outputs[0].num_output_tokens <= 4
    if streams == 16:
        assert sum(messages) < 16 * 9

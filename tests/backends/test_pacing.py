"""How often a stream gets a message, by how many streams run."""

from pathlib import Path

import pytest

from backends.causal_lm.scheduling.pacing import message_interval
from tests.backends.conftest import Harness, ask

PROMPT = "the cat sat on the mat"


@pytest.mark.parametrize(
    ("running", "cores", "seconds"),
    [(1, 1, 1 / 60), (2, 1, 0.024), (8, 2, 0.048), (16, 2, 0.096), (64, 2, 0.1), (16, 16, 1 / 60)],
)
def test_messages_take_an_eighth_of_the_cores_between_a_frame_and_a_tenth_of_a_second(
    running: int, cores: int, seconds: float
) -> None:
    assert message_interval(running, cores) == pytest.approx(seconds)


class SteppingClock:
    """A clock that moves a millisecond per reading: what a run takes is the same everywhere."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


@pytest.mark.parametrize(("streams", "least"), [(1, 4), (16, 1)])
def test_with_many_streams_messages_are_fewer_and_fuller(
    harness: Harness, model_directories: dict[str, Path], streams: int, least: int
) -> None:
    engine = harness.start(model_directories["both"], clock=SteppingClock())
    sinks = [ask(engine, PROMPT, max_tokens=25, min_tokens=25, stream=True) for _ in range(streams)]
    messages = [len(sink.wait().outputs) for sink in sinks]
    assert min(messages) >= least
    assert {sink.text for sink in sinks} == {sinks[0].text}
    assert sinks[0].outputs[0].num_output_tokens <= 4
    if streams == 16:
        assert sum(messages) < 16 * 12

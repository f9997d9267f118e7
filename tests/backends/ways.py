"""The same conversations in every way that an engine can be asked, and what shows that it was that way."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import GenerationRequest
from backends.causal_lm.settings import EngineSettings
from tests.backends.conftest import RecordingSink

Answer = tuple[list[int], str, list[float]]  # token ids, text, log-probabilities
PLAIN = {"threads": 1, "prefix_cache_bytes": 0, "speculative_tokens": 0}


@dataclass(frozen=True)
class Talk:
    """Two turns: a prompt, and what is said after its answer; both are asked with the same values."""

    prompt: Sequence[int]
    reply: Sequence[int]
    values: Mapping[str, object]


@dataclass(frozen=True)
class Way:
    """How conversations are held; `shows` tells by what was counted that it was this way."""

    shows: Callable[[MemoryMetrics], float]
    settings: Mapping[str, int] = field(default_factory=dict)
    crowd: bool = False
    sessions: bool = False


def tokens_a_step(metrics: MemoryMetrics) -> float:
    """More than one when several streams were decoded together; first tokens come of reading."""
    steps, _ = metrics.observations["inter_token_latency_seconds"]
    firsts, _ = metrics.observations["time_to_first_token_seconds"]
    return (metrics.values["generation_tokens_total"] - firsts) / steps


WAYS = {
    "in a crowd": Way(lambda metrics: tokens_a_step(metrics) > 2, crowd=True),
    "with a prefix cache": Way(
        lambda metrics: metrics.values["prefix_cache_hits_total"], {"prefix_cache_bytes": 2**28}
    ),
    "with drafts": Way(
        lambda metrics: metrics.values["spec_decode_num_accepted_tokens_total"], {"speculative_tokens": 8}
    ),
    "across a restart": Way(lambda metrics: metrics.values["sessions_resumed_total"], sessions=True),
    "in all these ways": Way(
        lambda metrics: metrics.values["sessions_resumed_total"] and tokens_a_step(metrics) > 2,
        {"prefix_cache_bytes": 2**28, "speculative_tokens": 8, "speculative_streams": 4},
        crowd=True,
        sessions=True,
    ),
}
ALONE = Way(lambda metrics: tokens_a_step(metrics) <= 1)


def held(version: Path, talks: Sequence[Talk], way: Way, directory: Path) -> list[Answer]:
    """Both turns of each conversation, the second in another engine over the same `directory`."""
    answers: list[Answer] = []
    prompts = [list(talk.prompt) for talk in talks]
    for _ in range(2):
        engine, metrics = started(version, way, directory)
        try:
            said = turn(engine, talks, prompts, way)
        finally:
            engine.close()
        answers += said
        prompts = [
            [*prompt, *ids, *talk.reply]
            for talk, prompt, (ids, _, _) in zip(talks, prompts, said, strict=True)
        ]
    assert way.shows(metrics), "it was not held in this way"
    return answers


def started(version: Path, way: Way, directory: Path) -> tuple[Engine, MemoryMetrics]:
    sessions = str(directory) if way.sessions else ""
    metrics = MemoryMetrics()
    settings = EngineSettings(**{**PLAIN, **way.settings, "session_directory": sessions})  # type: ignore[arg-type]
    return load_engine(version, settings, metrics), metrics


def turn(engine: Engine, talks: Sequence[Talk], prompts: Sequence[Sequence[int]], way: Way) -> list[Answer]:
    """One turn of each conversation: all submitted at once, or one after another."""
    sinks = []
    for number, (talk, prompt) in enumerate(zip(talks, prompts, strict=True)):
        values = {**talk.values, "input_ids": list(prompt), "return_log_probs": True}
        values |= {"session_id": f"talk {number}"} if way.sessions else {}
        sinks.append(RecordingSink())
        engine.submit(GenerationRequest.from_values("", values, engine.manifest), sinks[-1])
        if not way.crowd:
            sinks[-1].wait()
    return [answer(sink.wait()) for sink in sinks]


def answer(sink: RecordingSink) -> Answer:
    assert sink.failure is None
    return sink.token_ids, sink.text, [value for output in sink.outputs for value in output.log_probs]

"""What is remembered changes no text: with the cache, with sessions, across a restart, after damage."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from backends.causal_lm.caching import recall
from backends.causal_lm.engine import Engine
from backends.causal_lm.loading import load_engine
from backends.causal_lm.manifest import LoadError, read_manifest
from backends.causal_lm.metrics import MemoryMetrics
from backends.causal_lm.requests.request import RequestError
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.settings import EngineSettings
from tests.backends.conftest import Harness, RecordingSink, ask, make_request, racing_clock
from tests.backends.tiny_graph import VOCAB_SIZE, write_model

CACHE = 2**24
BOUNDARY = 64  # of a prompt of 66 to 97 tokens
RNG = random.Random(3)
HISTORY = [RNG.randrange(2, VOCAB_SIZE) for _ in range(70)]


@pytest.fixture(autouse=True)
def short_prompts_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' context ends before a prompt is long enough for what is tested here."""
    monkeypatch.setattr(recall, "_SHORTEST_CUT", 32)
    monkeypatch.setattr(recall, "_SNAPSHOT_SPACING", 32)


def drawn(engine: Engine, prompt: list[int], **values: object) -> RecordingSink:
    """A whole answer, drawn with its log-probabilities, so that a changed bit would show."""
    given: dict[str, object] = {
        "max_tokens": 12, "min_tokens": 12, "temperature": 1.0, "seed": 5, "return_log_probs": True,
    }  # fmt: skip
    return ask(engine, prompt, **{**given, **values}).wait()


def told(sink: RecordingSink) -> tuple[tuple[int, ...], tuple[float, ...]]:
    (output,) = sink.outputs
    return output.token_ids, output.log_probs


def cached(sink: RecordingSink) -> int:
    return sink.outputs[-1].num_cached_tokens


def prompts_that_begin_alike(number: int) -> list[list[int]]:
    rng = random.Random(number)
    prompts = []
    for _ in range(number):
        shared = rng.choice([0, 20, 32, 33, 50, 64, 70])
        rest = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 80 - shared))]
        prompts.append(HISTORY[:shared] + rest)
    return prompts


@pytest.mark.parametrize("chunks", [(256, 32), (40, 16), (7, 5)])
def test_answers_are_the_same_to_the_bit_with_and_without_the_cache(
    harness: Harness, directory: Path, chunks: tuple[int, int]
) -> None:
    prompts = prompts_that_begin_alike(30)
    sizes = {"prefill_tokens": chunks[0], "interleave_tokens": chunks[1]}
    cold = harness.start(directory, **sizes)
    expected = [told(drawn(cold, prompt)) for prompt in prompts]
    warm = harness.start(directory, prefix_cache_bytes=CACHE, **sizes)
    assert [told(drawn(warm, prompt)) for prompt in prompts] == expected
    assert harness.count("prefix_cache_hits_total") > 300
    again = [drawn(warm, prompt) for prompt in prompts]
    assert [told(sink) for sink in again] == expected
    assert sum(map(cached, again)) > 1000


def test_a_crowd_that_begins_alike_says_what_each_says_alone(harness: Harness, directory: Path) -> None:
    prompts = prompts_that_begin_alike(16)
    cold = harness.start(directory)
    alone = [told(drawn(cold, prompt)) for prompt in prompts]
    engine = harness.start(directory, prefix_cache_bytes=CACHE, interleave_tokens=16)
    with harness.standing_still():
        sinks = [
            ask(engine, p, max_tokens=12, min_tokens=12, temperature=1.0, seed=5, return_log_probs=True)
            for p in prompts
        ]
    assert [told(sink.wait()) for sink in sinks] == alone
    assert harness.count("prefix_cache_hits_total") > 0


def test_a_prompt_that_was_read_is_not_read_again(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, prefix_cache_bytes=CACHE)
    assert cached(drawn(engine, HISTORY)) == 0
    harness.runner.calls.clear()
    assert cached(drawn(engine, HISTORY)) == BOUNDARY
    assert [size for kind, size in harness.runner.calls if kind == "prefill"] == [len(HISTORY) - BOUNDARY]
    assert harness.count("prefix_cache_queries_total") == 2 * len(HISTORY)
    assert harness.count("prefix_cache_hits_total") == BOUNDARY
    assert harness.count("prompt_tokens_total") == 2 * len(HISTORY) - BOUNDARY
    assert harness.count("prefix_cache_bytes") > 0


def test_an_answer_is_not_read_again_where_decoding_equals_reading(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory, prefix_cache_bytes=CACHE)
    first = drawn(engine, HISTORY)
    turn = [*HISTORY, *first.token_ids, 9, 8, 7]
    second = drawn(engine, turn, max_tokens=5, min_tokens=5)
    read = len(HISTORY) + len(first.token_ids) - 1  # the last token was drawn and not run
    assert cached(second) == (read if directory.name == "retention" else BOUNDARY)
    cold = harness.start(directory)
    assert told(second) == told(drawn(cold, turn, max_tokens=5, min_tokens=5))


@pytest.mark.parametrize(("model", "equal"), [("attention", False), ("retention", True), ("both", False)])
def test_only_recurrent_graphs_decode_as_they_read(
    model_directories: dict[str, Path], model: str, equal: bool
) -> None:
    directory = model_directories[model]
    manifest = read_manifest(directory / "manifest.json")
    runner = OnnxRuntimeRunner(directory, manifest, EngineSettings(slots=2, threads=1))
    assert runner.decodes_as_it_reads is equal
    assert not any(pool.any() for pool in runner._states.pools if equal)


def test_no_token_is_read_alone_in_a_kernels_block(harness: Harness, directory: Path) -> None:
    for prefill_tokens in (40, 33, 31, 7):
        engine = harness.start(directory, prefix_cache_bytes=CACHE, prefill_tokens=prefill_tokens,
                               interleave_tokens=5)  # fmt: skip
        for prompt in prompts_that_begin_alike(20):
            harness.runner.calls.clear()
            drawn(engine, prompt, max_tokens=1, min_tokens=1)
            sizes = [size for kind, size in harness.runner.calls if kind == "prefill"]
            assert sizes == [1] if len(prompt) == 1 else all(size % 32 != 1 for size in sizes)


@pytest.mark.parametrize("length", [33, 34, 65, 66])
def test_the_last_token_of_a_known_prompt_is_not_left_alone(
    harness: Harness, directory: Path, length: int
) -> None:
    expected = told(drawn(harness.start(directory), HISTORY[:length]))
    engine = harness.start(directory, prefix_cache_bytes=CACHE, prefill_tokens=32)
    drawn(engine, HISTORY)
    again = drawn(engine, HISTORY[:length])
    assert (told(again), cached(again)) == (expected, (length - 2) // 32 * 32)


def test_the_orders_of_evidence_share_what_they_begin_with(harness: Harness, directory: Path) -> None:
    prompts = [[*HISTORY[:66], *ending] for ending in ([4, 5, 6], [6, 5, 4], [5, 4, 6])]
    values: dict[str, object] = {"prompt_lengths": [69] * 3}
    whole = [token for prompt in prompts for token in prompt]
    cold = drawn(harness.start(directory), whole, **values)
    warm = drawn(harness.start(directory, prefix_cache_bytes=CACHE), whole, **values)
    assert told(warm) == told(cold)
    assert cached(warm) == 2 * BOUNDARY


def test_a_full_cache_stays_in_its_budget_and_changes_no_text(harness: Harness, directory: Path) -> None:
    prompts = prompts_that_begin_alike(30)
    cold = harness.start(directory)
    expected = [told(drawn(cold, prompt)) for prompt in prompts]
    engine = harness.start(directory, prefix_cache_bytes=100_000)
    for prompt, answer in zip(prompts, expected, strict=True):
        assert told(drawn(engine, prompt)) == answer
        assert harness.count("prefix_cache_bytes") <= 100_000


def test_a_state_that_can_not_be_kept_fails_no_answer(
    harness: Harness, model_directories: dict[str, Path]
) -> None:
    engine = harness.start(model_directories["retention"], prefix_cache_bytes=CACHE)
    harness.runner.fail = lambda kind, number: kind == "save"
    sink = drawn(engine, [5, 6, 7])  # too short to be kept before its end
    assert (sink.reason, len(sink.token_ids)) == ("length", 12)
    harness.runner.fail = lambda kind, number: False
    assert cached(drawn(engine, [5, 6, 7, *sink.token_ids, 9])) == 0
    assert engine.healthy


# Sessions


def opened(directory: Path, sessions: Path | None, **values: int) -> tuple[Engine, MemoryMetrics]:
    settings = EngineSettings(
        threads=1, prefix_cache_bytes=0, speculative_tokens=0, session_directory=str(sessions or ""), **values
    )
    metrics = MemoryMetrics()
    return load_engine(directory, settings, metrics), metrics


def second_turn(first: RecordingSink) -> list[int]:
    return [*HISTORY, *first.token_ids, 9, 8]


def resumed_length(directory: Path, first: RecordingSink) -> int:
    whole = len(HISTORY) + len(first.token_ids) - 1
    return whole if directory.name == "retention" else BOUNDARY


@pytest.mark.parametrize("restart", [False, True])
def test_a_session_goes_on_as_if_its_history_were_read(
    tmp_path: Path, directory: Path, restart: bool
) -> None:
    engine, metrics = opened(directory, tmp_path)
    first = drawn(engine, HISTORY, session_id="talk")
    plain = told(drawn(engine, second_turn(first)))
    if restart:
        engine.close()
        engine, metrics = opened(directory, tmp_path)
    second = drawn(engine, second_turn(first), session_id="talk")
    assert told(second) == plain
    assert cached(second) == resumed_length(directory, first)
    assert metrics.values["sessions_resumed_total"] == 1
    engine.close()


def test_a_prompt_too_short_to_pause_in_is_parked_as_it_is_or_not_at_all(
    tmp_path: Path, directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recall, "_SHORTEST_CUT", 128)
    engine, _ = opened(directory, tmp_path)
    first = drawn(engine, HISTORY, session_id="talk")
    plain = told(drawn(engine, second_turn(first)))
    second = drawn(engine, second_turn(first), session_id="talk")
    expected = {"both": 0}.get(directory.name, resumed_length(directory, first))
    assert (told(second), cached(second)) == (plain, expected)
    engine.close()


def test_any_session_may_go_on_from_anothers_state(tmp_path: Path, directory: Path) -> None:
    engine, _ = opened(directory, tmp_path)
    first = drawn(engine, HISTORY, session_id="talk")
    for name in ("fork", "talk"):
        second = drawn(engine, second_turn(first), session_id=name)
        assert cached(second) == resumed_length(directory, first)
    engine.close()


def test_without_a_session_id_nothing_is_parked_or_resumed(tmp_path: Path, directory: Path) -> None:
    engine, metrics = opened(directory, tmp_path)
    first = drawn(engine, HISTORY)
    assert list((tmp_path / "tiny").iterdir()) == []
    drawn(engine, HISTORY, session_id="talk")
    assert cached(drawn(engine, second_turn(first))) == 0
    assert metrics.values["sessions_resumed_total"] == 0
    engine.close()


def test_another_history_under_the_same_id_is_read_anew(directory: Path) -> None:
    engine, _ = opened(directory, None)
    drawn(engine, HISTORY, session_id="talk")
    other = [*HISTORY[:30], HISTORY[30] ^ 1, *HISTORY[31:], 4, 4]
    expected = told(drawn(engine, other))
    second = drawn(engine, other, session_id="talk")
    assert (told(second), cached(second)) == (expected, 0)
    engine.close()


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-100] ^= 4
    path.write_bytes(content)


@pytest.mark.parametrize("harm", [flip, lambda path: path.write_bytes(path.read_bytes()[:-9])])
def test_a_harmed_state_is_read_anew_and_told(
    tmp_path: Path, directory: Path, harm: Callable[[Path], None]
) -> None:
    engine, _ = opened(directory, tmp_path)
    first = drawn(engine, HISTORY, session_id="talk")
    expected = told(drawn(engine, second_turn(first)))
    engine.close()
    (file,) = (tmp_path / "tiny").iterdir()
    harm(file)
    engine, metrics = opened(directory, tmp_path)
    second = drawn(engine, second_turn(first), session_id="talk")
    assert (told(second), cached(second)) == (expected, 0)
    assert metrics.values["sessions_refused_total"] == 1
    engine.close()


def test_another_export_of_a_model_refuses_its_states(tmp_path: Path) -> None:
    sessions = tmp_path / "sessions"
    engine, _ = opened(write_model(tmp_path / "1", ("retention",)), sessions)
    first = drawn(engine, HISTORY, session_id="talk")
    engine.close()
    engine, metrics = opened(write_model(tmp_path / "2", ("retention",), precision="int8"), sessions)
    assert cached(drawn(engine, second_turn(first), session_id="talk")) == 0
    assert metrics.values["sessions_refused_total"] == 1
    engine.close()


def test_with_a_disk_that_is_gone_requests_are_fine(tmp_path: Path, directory: Path) -> None:
    engine, metrics = opened(directory, tmp_path)
    (tmp_path / "tiny").rmdir()
    first = drawn(engine, HISTORY, session_id="talk")
    assert cached(drawn(engine, second_turn(first), session_id="talk")) == resumed_length(directory, first)
    engine.close()
    assert metrics.values["sessions_lost_total"] >= 1


def test_a_directory_that_can_not_be_made_is_a_load_error(tmp_path: Path, directory: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(LoadError, match="session_directory"):
        opened(directory, tmp_path / "file")


def test_a_cancelled_answer_is_parked_as_far_as_it_came(
    harness: Harness, model_directories: dict[str, Path]
) -> None:
    engine = harness.start(model_directories["retention"], clock=racing_clock)
    sink = RecordingSink(lambda output: engine.cancel("mine") if output.num_output_tokens > 4 else None)
    values: dict[str, object] = {"stream": True, "min_tokens": 20, "max_tokens": 20, "session_id": "talk"}
    engine.submit(make_request(engine, HISTORY, "mine", **values), sink)
    assert sink.wait().reason == "cancelled"
    turn = [*HISTORY, *sink.token_ids, 9, 8]
    assert cached(drawn(engine, turn, max_tokens=2, min_tokens=2, session_id="talk")) >= len(turn) - 3


def test_a_closed_engine_refuses_a_session_too(tmp_path: Path, directory: Path) -> None:
    engine, _ = opened(directory, tmp_path)
    first = drawn(engine, HISTORY, session_id="talk")
    engine.close()
    sink = ask(engine, second_turn(first), session_id="talk").wait()
    assert sink.failure is not None
    assert sink.failure[0] == "unavailable"


@pytest.mark.parametrize(
    ("session_id", "text"), [("", "has 0 characters"), ("x" * 257, "has 257"), (b"\xff", "UTF-8")]
)
def test_a_session_id_out_of_range_is_refused(
    harness: Harness, directory: Path, session_id: object, text: str
) -> None:
    engine = harness.start(directory)
    with pytest.raises(RequestError, match=rf"^invalid: session_id: .*{text}"):
        make_request(engine, [5], session_id=session_id)


def test_a_session_of_several_prompts_is_refused(harness: Harness, directory: Path) -> None:
    engine = harness.start(directory)
    with pytest.raises(RequestError, match="session_id: 2 prompts were given"):
        make_request(engine, [5, 6], session_id="talk", prompt_lengths=[1, 1])

"""The bound session against plain runs of the same graph: rows, chunks and batches change no bit."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper

from backends.causal_lm.manifest import LoadError, read_manifest
from backends.causal_lm.runtime import memory
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.scheduling.scheduler import Chunk, Scheduler
from backends.causal_lm.settings import EngineSettings
from tests.backends.tiny_graph import MAX_LENGTH, VOCAB_SIZE, write_model

TOKENS = np.random.default_rng(3).integers(2, VOCAB_SIZE, 40)


def load(directory: Path) -> OnnxRuntimeRunner:
    manifest = read_manifest(directory / "manifest.json")
    return OnnxRuntimeRunner(directory, manifest, EngineSettings(slots=6, prefill_tokens=40, threads=1))


def load_with(directory: Path, **values: int) -> OnnxRuntimeRunner:
    manifest = read_manifest(directory / "manifest.json")
    return OnnxRuntimeRunner(directory, manifest, EngineSettings(slots=4, threads=1, **values))


@pytest.fixture(scope="module")
def telling_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A version directory whose layers are one kind of mixer, with two extra outputs."""

    def write(mixer: str) -> Path:
        figures = ("epistemic", "confidence")
        return write_model(tmp_path_factory.mktemp(mixer), (mixer, mixer), figures=figures)

    return write


class PlainRun:
    """One sequence through a session with fresh tensors for every state and every step."""

    def __init__(self, directory: Path) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = ort.InferenceSession(directory / "model.onnx", options)
        states = read_manifest(directory / "manifest.json").states
        self._states = {s.past: np.zeros((1, *s.shape), s.dtype) for s in states}

    def __call__(self, tokens: NDArray[np.int64], start: int) -> NDArray[np.float32]:
        T = len(tokens)
        positions = np.arange(start, start + T)[None]
        feed = {"input_ids": tokens[None], "positions": positions, "lengths": np.array([T])} | self._states
        feed["logits_at"] = np.array([[T - 1]])
        logits, *presents = self._session.run(None, feed)
        self._states = dict(zip(self._states, presents, strict=True))
        return np.array(logits[0, 0])


def test_a_prompt_and_its_steps_equal_plain_runs_in_any_row(directory: Path) -> None:
    runner, plain = load(directory), PlainRun(directory)
    for position, chunk in ((0, TOKENS[:17]), (17, TOKENS[17:30])):
        expected = plain(chunk, position)
        for row in (0, 3):
            assert np.array_equal(runner.prefill(row, chunk, position), expected)
    runner.move(3, 1, 30)
    for position in range(30, 40):
        expected = plain(TOKENS[position : position + 1], position)
        logits = runner.decode(TOKENS[[position] * 2], np.array([position] * 2))
        assert np.array_equal(logits, [expected] * 2)


@pytest.mark.parametrize("chunks", [[40], [20, 20], [7, 31, 2]])
def test_a_prompt_in_chunks_equals_the_prompt_at_once(directory: Path, chunks: list[int]) -> None:
    whole = PlainRun(directory)(TOKENS, 0)
    runner, position = load(directory), 0
    for size in chunks:
        logits = runner.prefill(2, TOKENS[position : position + size], position)
        position += size
    assert np.array_equal(logits, whole)


class Prompt:
    def __init__(self, length: int) -> None:
        self.state_bytes, self.priority, self.user = 0, 0, ""
        self.deadline: float | None = None
        self.prompt_lengths: Sequence[int] = [length]
        self.lengths = [0]


def chunk_of_a_step(policy: Scheduler[Prompt]) -> Chunk[Prompt] | None:
    policy.begin_step()
    return policy.next_chunk()


@pytest.mark.parametrize("length", [2, 5, 31, 33, 34, 40, 65])
def test_a_prompt_gives_the_same_bits_however_the_scheduler_cuts_it(directory: Path, length: int) -> None:
    runner, tokens, found = load(directory), np.resize(TOKENS, length), []
    for limit in (40, 33, 16, 5, 4):
        policy: Scheduler[Prompt] = Scheduler(EngineSettings(prefill_tokens=limit, interleave_tokens=4))
        policy.enqueue(Prompt(length))
        runner.reset(0)
        while chunk := chunk_of_a_step(policy):
            logits = runner.prefill(0, tokens[chunk.start : chunk.stop], chunk.start).copy()
            policy.complete(chunk)
        found.append(logits)
    assert all(np.array_equal(logits, found[0]) for logits in found)


def test_rows_of_different_lengths_decode_as_if_alone(directory: Path) -> None:
    runner, lengths = load(directory), [3, 17, 1, 29, 8]
    alone = []
    for row, length in enumerate(lengths):
        runner.reset(row)
        runner.prefill(row, TOKENS[:length], 0)
        plain = PlainRun(directory)
        plain(TOKENS[:length], 0)
        alone.append(plain(TOKENS[length : length + 1], length))
    logits = runner.decode(TOKENS[lengths], np.array(lengths))
    assert np.array_equal(logits, alone)


def test_reading_a_prompt_leaves_the_other_rows_alone(directory: Path) -> None:
    runner, plain = load(directory), PlainRun(directory)
    runner.prefill(0, TOKENS[:9], 0)
    plain(TOKENS[:9], 0)
    runner.prefill(1, TOKENS[:33], 0)
    assert np.array_equal(runner.decode(TOKENS[9:10], np.array([9]))[0], plain(TOKENS[9:10], 9))


def test_a_used_row_serves_a_new_sequence_after_a_reset(directory: Path) -> None:
    runner = load(directory)
    runner.prefill(0, TOKENS, 0)
    runner.reset(0)
    assert np.array_equal(runner.prefill(0, TOKENS[:5], 0), PlainRun(directory)(TOKENS[:5], 0))


def test_a_prompt_may_fill_the_context(directory: Path) -> None:
    runner, plain = load(directory), PlainRun(directory)
    tokens = np.resize(TOKENS, MAX_LENGTH)
    for start, stop in ((0, 40), (40, 80), (80, MAX_LENGTH)):
        logits = runner.prefill(5, tokens[start:stop], start)
        assert np.array_equal(logits, plain(tokens[start:stop], start))


def verifying(directory: Path) -> OnnxRuntimeRunner:
    return load_with(directory, speculative_tokens=6, speculative_streams=3)


@pytest.mark.parametrize("mixer", ["attention", "retention"])
@pytest.mark.parametrize("row", [0, 2])
def test_verified_tokens_are_to_the_bit_as_if_decoded_and_so_is_what_follows(
    telling_of: Callable[[str], Path], mixer: str, row: int
) -> None:
    plain, runner = (verifying(telling_of(mixer)) for _ in range(2))
    plain.prefill(0, TOKENS[:9], 0)
    runner.reset(row)
    runner.prefill(row, TOKENS[:9], 0)
    position = 9
    for size, kept in ((7, 7), (1, 1), (5, 1), (7, 3), (2, 2), (4, 2)):
        tokens = np.concatenate([TOKENS[position : position + kept], TOKENS[:size]])[:size]
        logits, figures = runner.verify(row, tokens, position)
        assert (logits.shape, figures.shape) == ((size, VOCAB_SIZE), (size, 2))
        for place in range(kept):
            decoded = plain.decode(tokens[place : place + 1], np.array([position + place]))
            assert np.array_equal(logits[place], decoded[0])
            assert np.array_equal(figures[place], plain.figures[0])
        runner.keep(row, kept)
        position += kept
    runner.move(row, 0, position)
    last = TOKENS[position : position + 1]
    assert np.array_equal(runner.decode(last, np.array([position])), plain.decode(last, np.array([position])))


@pytest.mark.parametrize("mixer", ["attention", "retention"])
def test_verifying_one_row_leaves_the_others_alone(model_directories: dict[str, Path], mixer: str) -> None:
    logits = []
    for verifies in (False, True):
        runner = verifying(model_directories[mixer])
        for row in range(3):
            runner.prefill(row, TOKENS[: 5 + row], 0)
        if verifies:
            runner.verify(1, TOKENS[10:16], 6)
            runner.keep(1, 1)
        logits.append(runner.decode(TOKENS[[5, 20, 7]], np.array([5, 7, 7]))[[0, 2]])
    assert np.array_equal(*logits)


def test_attention_and_retention_together_verify_nothing(model_directories: dict[str, Path]) -> None:
    most = {name: verifying(directory).most_verified for name, directory in model_directories.items()}
    assert most == {"attention": 7, "retention": 7, "both": 0}


@pytest.mark.parametrize("none", ["speculative_tokens", "speculative_streams"])
def test_a_runner_without_drafts_verifies_nothing(directory: Path, none: str) -> None:
    assert load_with(directory, **{none: 0}).most_verified == 0


def test_rows_that_cannot_be_mapped_are_a_load_error(
    model_directories: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_more(*_: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(memory, "_map", no_more)
    with pytest.raises(
        LoadError, match=r"Cannot allocate memory\): lower the parameters speculative_streams"
    ):
        verifying(model_directories["attention"])


def test_a_graph_whose_tokens_are_told_apart_by_their_number_is_not_verified(tmp_path: Path) -> None:
    """As a mixture of experts may be: an expert with one token takes another kernel."""
    write_model(tmp_path, ("attention",))
    model = onnx.load(tmp_path / "model.onnx")
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    last.output[0] = "right"
    model.graph.node.append(helper.make_node("Size", ["positions"], ["number"]))
    model.graph.node.append(helper.make_node("Cast", ["number"], ["many"], to=onnx.TensorProto.FLOAT))
    model.graph.node.append(helper.make_node("Add", ["right", "many"], ["logits"]))
    onnx.save(model, tmp_path / "model.onnx")
    assert verifying(tmp_path).most_verified == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"engine": "tensorrt"}, "engine 'tensorrt' can't be run here, known is 'onnxruntime'"),
        ({"stamps": {"onnxruntime": "1.2.3"}}, "was exported for onnxruntime 1.2.3"),
        ({"graph": "other.onnx"}, "other.onnx is missing; export the model again"),
        ({"states": []}, "inputs differ from manifest.json: missing .*, unknown .*past.00.key"),
        ({"vocab_size": 321}, r"logits has shape \(320,\) per row in the graph, \(321,\) in manifest.json"),
        ({"extra_outputs": ["epistemic"]}, r"outputs differ from manifest.json: missing \['epistemic'\]"),
    ],
)
def test_a_manifest_that_does_not_fit_its_graph_is_a_load_error(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        load(write_model(tmp_path, ("attention",), **changes))


def test_a_corrupt_graph_is_a_load_error(tmp_path: Path) -> None:
    write_model(tmp_path, ("attention",))
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(LoadError, match=r"model\.onnx can't be loaded .*export the model again"):
        load(tmp_path)


def test_a_graph_that_reads_its_past_after_writing_its_present_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, ("retention",))
    model = onnx.load(tmp_path / "model.onnx")
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    last.output[0] = "right"
    states = ["past.00.retention", "present.00.retention"]
    model.graph.node.append(helper.make_node("Sub", states, ["difference"]))
    model.graph.node.append(helper.make_node("ReduceMax", ["difference"], ["largest"], keepdims=0))
    model.graph.node.append(helper.make_node("Add", ["right", "largest"], ["logits"]))
    onnx.save(model, tmp_path / "model.onnx")
    with pytest.raises(LoadError, match="logits changes when states are written in place"):
        load(tmp_path)

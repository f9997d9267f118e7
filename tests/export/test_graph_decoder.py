"""ONNX decoders with caches: adapted, they say what transformers says of their weights, or are refused."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from transformers import PreTrainedModel
from typer.testing import CliRunner, Result

from export.comparison import read_comparison
from export.formats.decoder_graph import DecoderGraph, read_decoder
from export.formats.detect import detect_format
from export.formats.onnx_graph import read_graph
from export.graph_adapter import adapt, state_tensors
from export.graph_decoder import precision_of
from export.graph_session import GraphSession, Logits, Slots
from export.import_command import app, name_from
from export.inspection import inspect
from export.manifest import read_manifest
from tests.export.decoder_graphs import MAX_LENGTH, Make, build, tiny_llama, write_joined, write_shared
from tests.export.hostile_decoders import DECODERS

TOKENS = np.random.default_rng(5).integers(3, 300, 90)
# The limit of every float32 graph: the same numbers, summed in another order.
ATOL = 1e-4

WAYS: dict[str, Make] = {
    "joined": Make(),
    "shared": Make("shared"),
    "merged": Make(branch=True),
    "told how many": Make(keeps=True),
    "last only": Make(last=True),
    "shared, last only": Make("shared", last=True),
}


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_llama()


@pytest.fixture(scope="module")
def expected(llama: PreTrainedModel) -> Logits:
    """Logits of transformers after each of TOKENS."""
    with torch.inference_mode():
        logits: Logits = llama(torch.from_numpy(TOKENS)[None]).logits[0].numpy()
    return logits


@pytest.fixture(scope="module")
def session_for(
    llama: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], GraphSession]:
    """The adapted graph of one of WAYS, made once."""
    made: dict[str, GraphSession] = {}

    def session(way: str) -> GraphSession:
        if way not in made:
            directory, make = tmp_path_factory.mktemp("decoder"), WAYS[way]
            made[way] = adapted(write(directory, llama, make), directory / "adapted.onnx")
        return made[way]

    return session


def write(directory: Path, llama: PreTrainedModel, make: Make) -> Path:
    if make.layout == "joined":
        return write_joined(directory, llama, make)
    written = write_shared(directory, llama)
    (written / "decoder.onnx").write_bytes(build(llama, make).SerializeToString())
    return written


def decoder_in(directory: Path) -> DecoderGraph:
    return read_decoder(read_graph(directory))


def adapted(directory: Path, path: Path) -> GraphSession:
    decoder = decoder_in(directory)
    graph = adapt(ir.from_proto(decoder.file.model), decoder, MAX_LENGTH)
    path.write_bytes(ir.to_proto(graph).SerializeToString())
    return GraphSession(path, state_tensors(decoder, MAX_LENGTH), is_fused=True, threads=1)


def used_slots(session: GraphSession, count: int) -> Slots:
    """Rows in which everything beyond a sequence's own tokens is no number."""
    slots = session.slots(count)
    for array in slots.arrays:
        array[...] = np.nan
    return slots


@pytest.mark.parametrize("way", WAYS)
def test_an_adapted_graph_says_what_transformers_says_in_chunks_and_steps(
    way: str, session_for: Callable[[str], GraphSession], expected: Logits
) -> None:
    session = session_for(way)
    slots, start = used_slots(session, 1), 0
    for size in (1, 32, 7, 20):
        logits = session.prefill(slots, 0, TOKENS[start : start + size], start)
        start += size
        np.testing.assert_allclose(logits, expected[start - 1], atol=ATOL)
    for position in range(start, start + 8):
        logits = session.decode(slots, TOKENS[position : position + 1], np.array([position]))
        np.testing.assert_allclose(logits[0], expected[position], atol=ATOL)


@pytest.mark.parametrize("way", WAYS)
def test_rows_of_different_lengths_do_not_see_each_other(
    way: str, session_for: Callable[[str], GraphSession], expected: Logits
) -> None:
    session, ends = session_for(way), np.array([40, 1, 17, 80])
    slots = used_slots(session, 5)
    for row, end in enumerate(ends):
        session.prefill(slots, row, TOKENS[:end])
    for _ in range(4):
        logits = session.decode(slots, TOKENS[ends], ends)
        np.testing.assert_allclose(logits, expected[ends], atol=ATOL)
        ends = ends + 1


@pytest.mark.parametrize("way", ["joined", "shared"])
def test_only_the_new_tokens_are_written(way: str, session_for: Callable[[str], GraphSession]) -> None:
    session = session_for(way)
    slots = used_slots(session, 2)
    session.prefill(slots, 0, TOKENS[:9])
    session.prefill(slots, 1, TOKENS[:5])
    session.decode(slots, TOKENS[[9, 5]], np.array([9, 5]))
    for array in slots.arrays:
        assert np.isfinite(array[0, :, :10]).all()
        assert np.isnan(array[0, :, 10:]).all()
        assert np.isfinite(array[1, :, :6]).all()
        assert np.isnan(array[1, :, 6:]).all()


def test_the_head_reads_the_tokens_that_are_asked_for(llama: PreTrainedModel, tmp_path: Path) -> None:
    graph = adapt(
        ir.from_proto(build(llama, Make())), decoder_in(write_joined(tmp_path, llama)), MAX_LENGTH
    ).graph
    (logits, *_) = graph.outputs
    cast = logits.producer()
    assert cast is not None
    head = cast.inputs[0].producer()  # type: ignore[union-attr]
    assert head is not None
    assert (head.op_type, head.inputs[0].producer().op_type) == ("MatMul", "GatherND")  # type: ignore[union-attr]


def test_caches_of_half_precision_keep_their_type(
    llama: PreTrainedModel, tmp_path: Path, expected: Logits
) -> None:
    session = adapted(write_joined(tmp_path, llama, Make(half=True)), tmp_path / "adapted.onnx")
    slots = used_slots(session, 2)
    assert {array.dtype.name for array in slots.arrays} == {"float16"}
    for row, end in enumerate((30, 11)):
        session.prefill(slots, row, TOKENS[:end])
    logits = session.decode(slots, TOKENS[[30, 11]], np.array([30, 11]))
    # Ten bits of mantissa in keys and values.
    np.testing.assert_allclose(logits, expected[[30, 11]], atol=0.02 * expected.std())


def import_(repository: Path, source: Path, *options: str) -> Result:
    return CliRunner().invoke(app, [str(source), "--repository", str(repository), *options])


def test_a_folder_of_genai_is_installed_with_its_weights_as_they_are(
    llama: PreTrainedModel, tmp_path: Path
) -> None:
    source, repository = write_shared(tmp_path / "tiny", llama), tmp_path / "repository"
    result = import_(repository, source, "--max-length", "200")
    assert result.exit_code == 0, result.output
    assert {path.name for path in repository.iterdir()} == {"tiny", "tiny_engine", "tiny_tokenizer"}
    engine = repository / "tiny_engine" / "1"
    assert (engine / "decoder.onnx.data").read_bytes() == (source / "decoder.onnx.data").read_bytes()
    manifest = read_manifest(engine / "manifest.json")
    assert (manifest.max_length, manifest.vocab_size, manifest.precision) == (200, 300, "fp32")
    assert manifest.special_tokens.eos == (2, 7)
    assert manifest.states[1].past == "past.00.value"
    assert manifest.states[1].shape == (2, 200, 64)
    comparison = read_comparison(engine)
    assert comparison.reference == "ONNX Runtime without optimisations"
    assert {scenario.name for scenario in comparison.scenarios} == {
        "full prefill", "chunked prefill", "greedy decode", "ragged batch", "slot reuse",
    }  # fmt: skip
    assert max(scenario.max_error for scenario in comparison.scenarios) <= ATOL
    assert "is there and unchanged" in import_(repository, source, "--max-length", "200").output
    assert (repository / "tiny_tokenizer" / "1" / "chat_template.jinja").is_file()


def test_a_hubs_directory_keeps_its_graph_below(llama: PreTrainedModel, tmp_path: Path) -> None:
    directory = write_joined(tmp_path / "Tiny-ONNX", llama)
    assert detect_format(directory) == "onnx"
    assert name_from(str(directory / "onnx" / "model.onnx")) == "tiny-onnx"
    decoder = decoder_in(directory)
    assert (decoder.directory, decoder.max_length) == (directory, MAX_LENGTH)
    assert decoder_in(directory / "onnx" / "model.onnx") == decoder
    served = dict(inspect(directory).rows)["served as"]
    assert served == (
        "causal_lm, as it is; past_key_values: 2 layers of 2 heads of 64 in float32, new tokens put behind "
        "the past; 300 words, 256 tokens"
    )


def test_the_context_is_given_where_nothing_tells_it(llama: PreTrainedModel, tmp_path: Path) -> None:
    directory = write_joined(tmp_path / "tiny", llama)
    (directory / "config.json").unlink()
    refused = import_(tmp_path / "repository", directory)
    assert "tells how long a text may be: give --max-length" in refused.stderr


@pytest.mark.parametrize(("option", "sentence"), [
    ("--max-length=257", "this model allows 1 to 256"),
    ("--precision=int8", "--precision is for language models"),
    ("--example=x.npz", "--example is for those"),
])  # fmt: skip
def test_what_does_not_fit_a_decoder_is_refused(
    option: str, sentence: str, llama: PreTrainedModel, tmp_path: Path
) -> None:
    refused = import_(tmp_path / "repository", write_joined(tmp_path / "tiny", llama), option)
    assert sentence in refused.stderr
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(("bits", "precision"), [(4, "int4"), (8, "int8")])
def test_the_precision_is_that_of_the_products(bits: int, precision: str, tmp_path: Path) -> None:
    node = onnx.helper.make_node("MatMulNBits", ["x"], ["y"], domain="com.microsoft", bits=bits)
    graph = onnx.helper.make_graph([node], "g", [], [])
    onnx.save(onnx.helper.make_model(graph), tmp_path / "g.onnx")
    assert precision_of(read_graph(tmp_path / "g.onnx")) == precision


@pytest.mark.parametrize("name", sorted(DECODERS))
def test_a_hostile_decoder_is_refused_in_one_sentence_and_leaves_nothing(
    name: str, llama: PreTrainedModel, tmp_path: Path
) -> None:
    damage, sentence = DECODERS[name]
    directory = write_shared(tmp_path / "input", llama)
    damage(directory)
    result = import_(tmp_path / "repository", directory)
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("trident import: ")
    assert result.stderr.count("\n") == 1
    assert re.search(sentence, result.stderr), result.stderr
    assert not (tmp_path / "repository").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_without_their_fault_they_would_be_read(llama: PreTrainedModel, tmp_path: Path) -> None:
    assert len(decoder_in(write_shared(tmp_path, llama)).caches) == 4
    assert json.loads((tmp_path / "genai_config.json").read_text())["model"]["type"] == "llama"

"""`trident import` of an ONNX graph: proved, installed byte for byte, or refused in one sentence."""

import re
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton
from typer.testing import CliRunner, Result

from export.errors import ExportError
from export.formats.detect import detect_format
from export.formats.readers import open_checkpoint
from export.graph_proof import Proof, prove_graph
from export.import_command import app
from export.inspection import inspect
from tests.backends import onnx_graphs
from tests.export.hostile_graphs import GRAPHS, needs_particular_input
from tests.packaged_graphs import SILERO, packaged


def import_(repository: Path, source: object, *options: str) -> Result:
    return CliRunner().invoke(app, [str(source), "--repository", str(repository), *options])


def config_of(directory: Path) -> triton.ModelConfig:
    return text_format.Parse((directory / "config.pbtxt").read_text(), triton.ModelConfig())


def proof_of(path: Path) -> Proof:
    return prove_graph(path, path.stat().st_size, None)


def test_a_graph_is_installed_byte_for_byte_and_once(tmp_path: Path) -> None:
    source, repository = onnx_graphs.lookup(tmp_path / "Table.onnx"), tmp_path / "repository"
    result = import_(repository, source)
    assert result.exit_code == 0, result.output
    assert (repository / "table" / "1" / "model.onnx").read_bytes() == source.read_bytes()
    config = config_of(repository / "table")
    assert (config.backend, config.max_batch_size) == ("onnxruntime", 32)
    assert config.HasField("dynamic_batching")
    assert [(port.name, list(port.dims)) for port in config.output] == [("row", [-1, 2])]
    assert "is there and unchanged" in import_(repository, source).output
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_changed_graph_is_the_next_version(tmp_path: Path) -> None:
    source, repository = onnx_graphs.lookup(tmp_path / "g.onnx"), tmp_path / "repository"
    import_(repository, source)
    onnx_graphs.affine(source)
    assert import_(repository, source).exit_code == 0
    assert (repository / "g" / "2" / "model.onnx").read_bytes() == source.read_bytes()
    assert [port.name for port in config_of(repository / "g").input] == ["x"]


def test_weights_beside_the_graph_come_along(tmp_path: Path) -> None:
    directory, repository = tmp_path / "with weights", tmp_path / "repository"
    onnx_graphs.with_external(directory / "any.onnx", "w.bin")
    np.arange(4, dtype=np.float32).tofile(directory / "w.bin")
    assert detect_format(directory) == "onnx"
    result = import_(repository, directory)
    assert result.exit_code == 0, result.output
    installed = repository / "with-weights" / "1"
    assert {path.name for path in installed.iterdir()} == {"model.onnx", "w.bin", "comparison.json"}
    np.arange(4, 8, dtype=np.float32).tofile(directory / "w.bin")
    assert import_(repository, directory).exit_code == 0
    assert (repository / "with-weights" / "2").is_dir(), "other weights are another model"


def test_rows_that_depend_on_each_other_are_not_batched(tmp_path: Path) -> None:
    proof = proof_of(onnx_graphs.centred(tmp_path / "g.onnx"))
    assert not proof.batches
    assert "rows depend on each other" in proof.notes[0]
    assert proof_of(onnx_graphs.affine(tmp_path / "h.onnx")).batches


def test_a_scalar_has_one_axis_in_triton(tmp_path: Path) -> None:
    import_(tmp_path / "repository", onnx_graphs.scaled(tmp_path / "g.onnx"))
    config = config_of(tmp_path / "repository" / "g")
    assert config.max_batch_size == 0
    assert [(port.name, list(port.dims)) for port in config.input] == [("x", [-1, -1]), ("scale", [1])]


def test_an_example_proves_what_random_inputs_can_not(tmp_path: Path) -> None:
    source = needs_particular_input(tmp_path)
    np.savez(tmp_path / "in.npz", index=np.array([10**6]))
    result = import_(tmp_path / "repository", source, "--example", str(tmp_path / "in.npz"))
    assert result.exit_code == 0, result.output
    np.savez(tmp_path / "in.npz", other=np.array([1.0]))
    refused = import_(tmp_path / "repository", source, "--example", str(tmp_path / "in.npz"))
    assert re.search(r"holds other \(float64\); the graph takes index \(int64\)", refused.stderr)


@pytest.mark.parametrize("name", sorted(GRAPHS))
def test_a_hostile_graph_is_refused_in_one_sentence_and_leaves_nothing(name: str, tmp_path: Path) -> None:
    write, sentence = GRAPHS[name]
    (tmp_path / "input").mkdir()
    result = import_(tmp_path / "repository", write(tmp_path / "input"))
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("trident import: ")
    assert result.stderr.count("\n") == 1
    assert re.search(sentence, result.stderr), result.stderr
    assert not (tmp_path / "repository").exists()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert not Path("code-ran").exists()


def test_what_is_for_checkpoints_is_refused(tmp_path: Path) -> None:
    source = onnx_graphs.affine(tmp_path / "g.onnx")
    for option in ("--precision=fp32", "--max-length=9", "--chat-template=x"):
        refused = import_(tmp_path / "repository", source, option)
        assert "is for language models; this is served as it is" in refused.stderr
    with pytest.raises(ExportError, match="trident import` serves it as it is"):
        open_checkpoint(source)


def test_a_model_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    taken = tmp_path / "repository" / "g"
    taken.mkdir(parents=True)
    (taken / "config.pbtxt").write_text('platform: "ensemble"')
    refused = import_(tmp_path / "repository", onnx_graphs.affine(tmp_path / "g.onnx"))
    assert "is a model of the kind ensemble: give this one another --name" in refused.stderr
    assert (taken / "config.pbtxt").read_text() == 'platform: "ensemble"'


@pytest.mark.parametrize("cache", ["past_key_values.0.key", "past.00.value", "past_0"])
def test_a_decoder_with_a_cache_is_told_from_a_stateless_graph(cache: str, tmp_path: Path) -> None:
    node = onnx_graphs.helper.make_node("Add", ["x", cache], ["y"])
    ports = [(name, onnx_graphs.FLOAT, ["B", 4]) for name in ("x", cache, "y")]
    path = onnx_graphs.write_graph(tmp_path / "g.onnx", [node], ports[:2], ports[2:])
    refused = import_(tmp_path / "repository", path)
    assert re.search("g.onnx can't be served: it (takes|gives) no p.* but (x|y)", refused.stderr)
    assert dict(inspect(path).rows)["served as"].startswith("nothing: ")


def test_a_file_named_as_a_graph_must_be_one(tmp_path: Path) -> None:
    onnx_graphs.affine(tmp_path / "g.gguf")
    with pytest.raises(ExportError, match="named as gguf, but its content is onnx"):
        detect_format(tmp_path / "g.gguf")


def test_a_graph_is_described(tmp_path: Path) -> None:
    rows = dict(inspect(packaged(*SILERO)).rows)
    assert rows["format"] == "onnx, 2.3 MB in 1 files"
    assert "opset ai.onnx 16" in rows["made by"]
    assert rows["inputs"].splitlines()[1:] == ["state float [2, ?, 128]", "sr int64 []"]
    assert rows["served as"] == "onnxruntime, as it is"

"""Installing: what Triton finds afterwards, versions, re-use, and nothing half-written."""

import re
from pathlib import Path

import pytest
from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from client import wire
from export.comparison import COMPARISON, Comparison, Perplexity, Scenario, hash_artifact, write_comparison
from export.contract import CARRIED, EXTRA_OUTPUTS, GENERATION_INPUTS, OUTPUTS, PROMPT_INPUTS, TOKENIZED
from export.errors import ExportError
from export.installed import installed_engine, installed_request, latest_version
from export.repository import Installed, install
from export.triton_config import engine_config, ensemble_config
from export.workspace import require_disk, workspace

README = Path(__file__).parents[2] / "model_repository" / "README.md"


def scenario(*, passed: bool) -> Scenario:
    return Scenario(
        name="full prefill", steps=1, max_error=1e-5, mean_error=1e-6, logit_spread=2.0, top1_agreement=1.0,
        stat="max", limit=1e-4, passed=passed,
    )  # fmt: skip


PERPLEXITY = Perplexity(
    text="t", tokens=9, reference=8.0, graph=8.0, ratio=1.0, top1_agreement=1.0, limit=1.001, passed=True
)


def report(engine: Path, *, request: str, passed: bool = True) -> None:
    comparison = Comparison(
        model="tiny",
        engine="onnxruntime",
        precision="fp32",
        request=request,
        artifact=hash_artifact([engine / "model.onnx"]),
        reference="test",
        ran_on="test",
        scenarios=(scenario(passed=passed),),
        perplexity=PERPLEXITY,
        experts=None,
    )
    write_comparison(comparison, engine)


def prepare(work: Path, graph: str, *, request: str = "r1", vocabulary: str = "v") -> tuple[Path, Path]:
    engine, tokenizer = work / "engine", work / "tokenizer"
    engine.mkdir()
    tokenizer.mkdir()
    (engine / "model.onnx").write_text(graph)
    (engine / "manifest.json").write_text("{}")
    (tokenizer / "tokenizer.json").write_text(vocabulary)
    report(engine, request=request)
    return engine, tokenizer


def export(repository: Path, graph: str = "g1", *, request: str = "r1", vocabulary: str = "v") -> Installed:
    with workspace(repository, "tiny") as work:
        engine, tokenizer = prepare(work, graph, request=request, vocabulary=vocabulary)
        return install(repository, "tiny", engine=engine, tokenizer=tokenizer)


def config(repository: Path, name: str) -> triton.ModelConfig:
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), triton.ModelConfig())


def test_a_first_installation_is_three_models_of_version_one(tmp_path: Path) -> None:
    repository = tmp_path / "repository"
    installed = export(repository)
    found = sorted(str(path.relative_to(repository)) for path in repository.rglob("*") if path.is_file())
    assert found == [
        "tiny/config.pbtxt",
        "tiny_engine/1/comparison.json",
        "tiny_engine/1/manifest.json",
        "tiny_engine/1/model.onnx",
        "tiny_engine/config.pbtxt",
        "tiny_tokenizer/1/tokenizer.json",
        "tiny_tokenizer/config.pbtxt",
    ]
    assert (repository / "tiny" / "1").is_dir()
    assert installed == Installed(repository / "tiny_engine" / "1", is_new=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["repository"]


def test_a_changed_model_is_version_two_and_the_tokenizer_stays(tmp_path: Path) -> None:
    export(tmp_path / "r")
    assert export(tmp_path / "r", "g2").directory.name == "2"
    assert latest_version(tmp_path / "r" / "tiny_tokenizer") == 1
    assert latest_version(tmp_path / "r" / "tiny") == 1


def test_an_unchanged_model_keeps_its_version_and_its_files(tmp_path: Path) -> None:
    first = export(tmp_path / "r")
    before = (first.directory / "model.onnx").stat().st_ino
    again = export(tmp_path / "r", request="r2")
    assert again == Installed(first.directory, is_new=False)
    assert (first.directory / "model.onnx").stat().st_ino == before
    # The renewed report makes the next run see that nothing is to be done.
    assert installed_request(tmp_path / "r", "tiny") == "r2"


def test_two_versions_are_kept(tmp_path: Path) -> None:
    for graph in ("g1", "g2", "g3"):
        export(tmp_path / "r", graph)
    versions = sorted(path.name for path in (tmp_path / "r" / "tiny_engine").iterdir() if path.is_dir())
    assert versions == ["2", "3"]


def test_what_did_not_pass_or_is_another_file_is_not_installed(tmp_path: Path) -> None:
    with workspace(tmp_path / "r", "tiny") as work:
        engine, tokenizer = prepare(work, "g1")
        report(engine, request="r1", passed=False)
        with pytest.raises(ExportError, match=r"full prefill: max logit error .* so it is not installed"):
            install(tmp_path / "r", "tiny", engine=engine, tokenizer=tokenizer)
        report(engine, request="r1")
        (engine / "model.onnx").write_text("other")
        with pytest.raises(ExportError, match=r"model\.onnx is not the file that comparison\.json is about"):
            install(tmp_path / "r", "tiny", engine=engine, tokenizer=tokenizer)
        (engine / COMPARISON).unlink()
        with pytest.raises(ExportError, match="only what has been compared is installed"):
            install(tmp_path / "r", "tiny", engine=engine, tokenizer=tokenizer)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_installation_counts_as_none(tmp_path: Path) -> None:
    repository = tmp_path / "r"
    assert installed_request(repository, "tiny") is None
    export(repository)
    assert installed_request(repository, "tiny") == "r1"
    (installed_engine(repository, "tiny") / "model.onnx").write_text("cut")
    assert installed_request(repository, "tiny") is None
    (installed_engine(repository, "tiny") / COMPARISON).write_text("{}")
    assert installed_request(repository, "tiny") is None


def test_a_failure_leaves_neither_workspace_nor_model(tmp_path: Path) -> None:
    def interrupted() -> None:
        with workspace(tmp_path / "r", "tiny") as work:
            (work / "half").mkdir()
            (work / "half" / "model.onnx").write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_export_left_is_removed(tmp_path: Path) -> None:
    left = tmp_path / ".r.incoming-tiny"
    (left / "engine").mkdir(parents=True)
    (left / "file").write_text("x")
    with workspace(tmp_path / "r", "tiny") as work:
        assert work == left
        assert list(work.iterdir()) == []


def test_two_exports_of_one_model_at_once_are_refused(tmp_path: Path) -> None:
    with (
        workspace(tmp_path / "r", "tiny"),
        pytest.raises(ExportError, match="another export of tiny is running"),
        workspace(tmp_path / "r", "tiny"),
    ):
        pass


def test_too_little_disk_is_said_before_the_work(tmp_path: Path) -> None:
    require_disk(tmp_path, 1)
    with pytest.raises(ExportError, match=r"GB free, this export needs 1000000000\.0 GB"):
        require_disk(tmp_path, 10**18)


def test_the_engine_is_decoupled_with_one_instance_and_its_settings(tmp_path: Path) -> None:
    export(tmp_path)
    engine = config(tmp_path, "tiny_engine")
    assert engine.backend == "causal_lm"
    assert engine.max_batch_size == 1
    assert engine.model_transaction_policy.decoupled
    assert [group.count for group in engine.instance_group] == [1]
    parameters = {name: value.string_value for name, value in engine.parameters.items()}
    assert parameters == {"slots": "16", "queue_size": "64", "prefill_tokens": "256", "threads": "0"}


def test_every_tensor_of_the_ensemble_goes_to_a_step_under_its_own_name(tmp_path: Path) -> None:
    export(tmp_path)
    ensemble = config(tmp_path, "tiny")
    steps = {step.model_name: step for step in ensemble.ensemble_scheduling.step}
    taken = {name for step in steps.values() for name in step.input_map}
    assert {tensor.name for tensor in ensemble.input} == taken - set(TOKENIZED)
    assert all(tensor.optional for tensor in ensemble.input)
    assert {tensor.name for tensor in ensemble.output} == set(steps["tiny_engine"].output_map)
    assert set(steps["tiny_tokenizer"].output_map) == set(TOKENIZED)


def test_the_ensemble_declares_the_documented_tensors() -> None:
    figures = [name for names in CARRIED.values() for name in names]
    ensemble = text_format.Parse(ensemble_config("tiny", figures), triton.ModelConfig())
    text = README.read_text("utf-8")
    inputs, outputs = text.split("Outputs\n")[0], text.split("Outputs\n")[1].split("Protocol:")[0]
    assert {tensor.name for tensor in ensemble.input} == set(documented_tensors(inputs))
    assert {tensor.name for tensor in ensemble.output} == set(documented_tensors(outputs))
    for tensor in (*ensemble.input, *ensemble.output):
        kind, dims = (documented_tensors(inputs) | documented_tensors(outputs))[tensor.name]
        assert triton.DataType.Name(tensor.data_type) == f"TYPE_{kind}"
        assert list(tensor.dims) == [int(dims)]


def test_extra_outputs_are_declared_where_the_model_has_them(tmp_path: Path) -> None:
    for figures, expected in ((("epistemic", "thought_budget"), {"uncertainty", "cot_budget"}), ((), set())):
        engine = text_format.Parse(engine_config("tiny", {}, figures), triton.ModelConfig())
        ensemble = text_format.Parse(ensemble_config("tiny", figures), triton.ModelConfig())
        assert {tensor.name for tensor in engine.output} == expected
        assert {tensor.name for tensor in ensemble.output} == expected | set(OUTPUTS)
        assert set(ensemble.ensemble_scheduling.step[1].output_map) == expected | set(OUTPUTS)


def test_a_figure_that_no_tensor_carries_is_refused() -> None:
    with pytest.raises(ExportError, match="tells mood, which no tensor carries; known are confidence"):
        ensemble_config("tiny", ("mood", "epistemic"))


def documented_tensors(text: str) -> dict[str, tuple[str, str]]:
    """name -> (type, dims) of each row of a table."""
    rows = re.findall(r"^\| (`.*?`) \| (STRING|INT32|UINT64|FP32|BOOL) \[(-?\d+)\]", text, re.MULTILINE)
    return {name: (kind, dims) for names, kind, dims in rows for name in re.findall(r"`(\w+)`", names)}


def test_the_client_speaks_of_the_same_tensors() -> None:
    assert set(wire.INPUTS) == set(PROMPT_INPUTS | GENERATION_INPUTS)
    assert set(wire.OUTPUTS) == set(OUTPUTS)
    assert set(wire.EXTRA_OUTPUTS) == set(EXTRA_OUTPUTS)

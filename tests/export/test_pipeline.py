"""`python -m export` as a person runs it: what is installed, re-used, refused, and left behind."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner, Result

from backends.causal_lm.manifest import read_manifest as engine_reads
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.settings import EngineSettings
from export import stages
from export.__main__ import app
from export.comparison import read_comparison
from export.console import StageReporter
from export.errors import ExportError
from export.formats.readers import read_model
from export.graph import OPSET as GRAPH_OPSET
from export.installed import installed_engine
from export.manifest import read_manifest
from export.pipeline import check_name
from export.stamps import OPSET, library_stamps
from export.tolerances import Tolerance
from tests.export.tiny_gguf import TEMPLATE, TinyLlama
from training.checkpoint import save_model
from training.config import ModelConfig
from training.decoder import Decoder
from training.presets import preset

COMPANIONS = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "held_out.txt")
TEXT = "the capital of france is paris and the river is the seine, hello world " * 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random retention and MoE model with the tiny GGUF's tokenizer."""
    directory = tmp_path_factory.mktemp("source")
    files = read_model(TinyLlama().write(directory / "tiny.gguf")).tokenizer
    torch.manual_seed(0)
    config = ModelConfig.model_validate(preset("retnet-moe-tiny").model_dump() | {"vocab_size": 300})
    companions = {
        "tokenizer.json": files.tokenizer,
        "tokenizer_config.json": json.dumps(dict(files.config)),
        "chat_template.jinja": TEMPLATE,
        "held_out.txt": TEXT,
    }
    save_model(directory / "checkpoint", Decoder(config), companions=companions)
    return directory / "checkpoint"


def export(repository: Path, source: Path, *options: str, precision: str = "fp32") -> Result:
    """Run the command in this process."""
    arguments = ["--model", "tiny", "--source", str(source), "--repository", str(repository)]
    return CliRunner().invoke(app, [*arguments, "--precision", precision, *options])


@pytest.fixture(scope="module")
def installed(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the checkpoint in float32, exported once for the tests that only look."""
    repository = tmp_path_factory.mktemp("installed") / "repository"
    result = export(repository, checkpoint)
    assert result.exit_code == 0, result.output
    assert "perplexity" in result.output
    return repository


def test_the_installed_engine_gives_the_decoders_logits(installed: Path, checkpoint: Path) -> None:
    directory = installed_engine(installed, "tiny")
    runner = OnnxRuntimeRunner(
        directory, engine_reads(directory / "manifest.json"), EngineSettings(threads=1)
    )
    decoder = read_model(checkpoint).decoder
    tokens = np.arange(40, 60)
    runner.reset(0)
    with torch.no_grad():
        expected = decoder(torch.from_numpy(tokens)[None])[0][0, -1]
    # The project's bound for float32 graphs.
    np.testing.assert_allclose(runner.prefill(0, tokens, 0), expected.numpy(), atol=1e-4)


def test_the_manifest_says_what_was_exported(installed: Path, checkpoint: Path) -> None:
    directory = installed_engine(installed, "tiny")
    manifest, decoder = read_manifest(directory / "manifest.json"), read_model(checkpoint).decoder
    assert [state.past for state in manifest.states] == [spec.past for spec in decoder.state_specs()]
    assert {state.kind for state in manifest.states} == {"recurrent"}
    assert (manifest.vocab_size, manifest.max_length) == (300, 256)
    assert manifest.special_tokens.eos == (2,)
    assert manifest.source.format == "trident"
    assert manifest.stamps == library_stamps("onnxruntime")
    assert manifest.stamps["onnxruntime"] == "1.31.1"
    graph = onnx.load(directory / manifest.graph, load_external_data=False)
    assert {value.name for value in graph.graph.input} >= {state.past for state in manifest.states}


def test_the_directories_hold_what_the_readme_lists(installed: Path) -> None:
    engine = {path.name for path in installed_engine(installed, "tiny").iterdir()}
    tokenizer = {path.name for path in (installed / "tiny_tokenizer" / "1").iterdir()}
    assert engine == {"manifest.json", "model.onnx", "model.onnx.data", "tokenizer.json", "comparison.json"}
    assert tokenizer == {"tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    assert (
        read_comparison(installed_engine(installed, "tiny")).perplexity.text
        == "the model's own held-out text"
    )


def test_what_a_model_tells_of_itself_is_exported_compared_and_declared(
    checkpoint: Path, tmp_path: Path
) -> None:
    telling = tmp_path / "telling"
    torch.manual_seed(0)
    config = preset("bayesian-tiny").model_copy(update={"vocab_size": 300})
    companions = {path.name: path.read_text() for path in checkpoint.iterdir() if path.name in COMPANIONS}
    save_model(telling, Decoder(config), companions=companions)
    result = export(tmp_path / "repository", telling)
    assert result.exit_code == 0, result.output
    directory = installed_engine(tmp_path / "repository", "tiny")
    figures = ("confidence", "epistemic", "aleatoric", "thought_budget")
    assert read_manifest(directory / "manifest.json").extra_outputs == figures
    assert engine_reads(directory / "manifest.json").extra_outputs == figures
    assert [figure.name for figure in read_comparison(directory).figures] == list(figures)
    assert "thought_budget" in result.output
    for model in ("tiny", "tiny_engine"):
        declared = (tmp_path / "repository" / model / "config.pbtxt").read_text()
        assert all(f'name: "{name}"' in declared for name in ("uncertainty", "cot_budget"))


def test_the_opset_that_is_stamped_is_the_one_that_is_written() -> None:
    assert OPSET == GRAPH_OPSET


def test_a_second_run_says_so_and_loads_no_torch(installed: Path, checkpoint: Path) -> None:
    script = (
        "import sys\n"
        "from export.__main__ import app\n"
        "code = app(sys.argv[1:], standalone_mode=False)\n"
        "assert not code\n"
        "assert not {'torch', 'onnx', 'onnxruntime', 'tritonclient'} & set(sys.modules)\n"
    )
    arguments = ["--model", "tiny", "--source", str(checkpoint), "--repository", str(installed)]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments, "--precision", "fp32"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "tiny (fp32, onnxruntime) is there and unchanged" in done.stdout


def test_force_exports_anew_and_keeps_the_version_of_equal_files(installed: Path, checkpoint: Path) -> None:
    result = export(installed, checkpoint, "--force")
    assert result.exit_code == 0
    assert "their version stays" in result.output
    assert installed_engine(installed, "tiny").name == "1"


def test_a_gguf_in_int8_with_a_shorter_context_becomes_the_next_version(
    tmp_path: Path, installed: Path
) -> None:
    repository = tmp_path / "repository"
    shutil.copytree(installed, repository)
    source = TinyLlama(layers=1, scale=1.0).write(tmp_path / "tiny.gguf")
    result = export(repository, source, "--max-length", "128", precision="int8")
    assert result.exit_code == 0, result.output
    manifest = read_manifest(repository / "tiny_engine" / "2" / "manifest.json")
    assert (manifest.precision, manifest.source.format, manifest.max_length) == ("int8", "gguf", 128)
    assert (repository / "tiny_tokenizer" / "1").is_dir()
    assert list(tmp_path.glob(".*")) == []


def test_what_differs_too_much_is_not_installed(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stages.TOLERANCES, "fp32", Tolerance("max", 1e-12, 1.0001, 1e-4))
    result = export(tmp_path / "repository", checkpoint)
    assert result.exit_code == 1
    assert "differs from PyTorch by more than is allowed (full prefill: max logit error" in result.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "sentence"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "model.onnx"), 1, "the disk is full (model.onnx)"),
        (PermissionError(errno.EACCES, "Permission denied", "/r"), 1, "/r: Permission denied"),
        (ExportError("no such thing; give another"), 1, "no such thing; give another"),
        (KeyboardInterrupt(), 130, "interrupted; nothing was installed"),
    ],
)
def test_a_failing_stage_is_one_sentence_and_leaves_nothing(
    error: BaseException,
    code: int,
    sentence: str,
    tmp_path: Path,
    checkpoint: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(stages, "graph_from_decoder", fail)
    result = export(tmp_path / "repository", checkpoint)
    assert result.exit_code == code
    assert result.stderr.strip().startswith(f"trident export: {sentence}")
    assert len(result.stderr.strip().splitlines()) == 1
    assert list(tmp_path.glob(".*")) == []


def test_too_little_disk_is_refused_before_the_graph(
    tmp_path: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_free = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: nothing_free)
    result = export(tmp_path / "repository", checkpoint)
    assert result.exit_code == 1
    assert "0.0 GB free, this export needs 0.0 GB" in result.stderr


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_export_leaves_nothing(how: signal.Signals, tmp_path: Path, checkpoint: Path) -> None:
    arguments = ["--model", "tiny", "--source", str(checkpoint), "--repository", str(tmp_path / "repository")]
    process = subprocess.Popen(
        [sys.executable, "-m", "export", *arguments],
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*/engine")) and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(process.pid, how)
    _, said = process.communicate(timeout=60)
    assert (process.returncode, said.strip()) == (130, "trident export: interrupted; nothing was installed")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["Tiny", "", "a/b", "../x", "tiny_engine", "tiny_tokenizer", "-x", "x" * 64])
def test_a_name_that_cannot_be_served_is_refused(name: str) -> None:
    with pytest.raises(ExportError, match="allowed are lower-case letters"):
        check_name(name)


@pytest.mark.parametrize("name", ["smollm2", "my-model_1.5b", "0"])
def test_a_name_that_can_be_served_is_accepted(name: str) -> None:
    check_name(name)


def test_wrong_usage_exits_with_two() -> None:
    assert CliRunner().invoke(app, ["--model", "tiny", "--precision", "int3"]).exit_code == 2


def test_a_terminal_sees_the_stage_and_its_detail() -> None:
    screen = StringIO()
    with StageReporter(Console(file=screen, force_terminal=True, width=100)) as reporter:
        reporter.enter("graph", "trace")
        reporter.enter("compare", "ragged batch")
        reporter._live.refresh()
    assert "graph" in screen.getvalue()
    assert "ragged batch" in screen.getvalue()


def test_a_log_gets_one_line_per_finished_stage() -> None:
    log = StringIO()
    with StageReporter(Console(file=log, width=100)) as reporter:
        for detail in ("full prefill", "perplexity"):
            reporter.enter("compare", detail)
        reporter.enter("install", "repository")
    stages_said = [line.split()[0] for line in log.getvalue().splitlines() if line.strip()]
    assert stages_said == ["compare", "install"]


def test_a_plan_is_built_without_a_gpu_and_left_where_it_was_asked_for(
    tmp_path: Path, checkpoint: Path
) -> None:
    output, repository = tmp_path / "plan", tmp_path / "repository"
    options = ("--engine", "tensorrt-rtx", "--output", str(output))
    result = export(repository, checkpoint, *options, precision="fp16")
    assert result.exit_code == 0, result.output
    assert "The engine does not run plans yet" in result.output
    assert {path.name for path in output.iterdir()} == {
        "manifest.json", "model.plan", "tokenizer.json", "comparison.json",
    }  # fmt: skip
    manifest, comparison = read_manifest(output / "manifest.json"), read_comparison(output)
    assert (manifest.graph, manifest.engine) == ("model.plan", "tensorrt-rtx")
    assert str(manifest.stamps["tensorrt-rtx"]).startswith("1.")
    assert set(comparison.artifact) == {"model.plan"}
    assert comparison.ran_on.endswith("the plan itself has not run")
    assert "padded prefill" in {scenario.name for scenario in comparison.scenarios}
    assert not repository.exists()
    again = export(repository, checkpoint, *options, precision="fp16")
    assert "is there and unchanged" in again.output


@pytest.mark.parametrize(
    ("engine", "precision", "sentence"),
    [
        ("tensorrt", "fp16", "tensorrt is not installed"),
        ("onnxruntime", "fp16", "ONNX Runtime computes in float32 on a CPU"),
    ],
)
def test_what_cannot_be_had_here_is_said_at_once(
    engine: str, precision: str, sentence: str, tmp_path: Path, checkpoint: Path
) -> None:
    if engine == "tensorrt" and find_spec("tensorrt") is not None:
        pytest.skip("tensorrt is installed")
    result = export(tmp_path / "repository", checkpoint, "--engine", engine, precision=precision)
    assert result.exit_code == 1
    assert sentence in result.stderr

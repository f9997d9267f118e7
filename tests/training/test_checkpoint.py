"""Model directories: whole or absent, and a broken one is named with its problem."""

import json
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.checkpoint import CheckpointError, atomic_directory, load_model, save_model
from training.config import ModelConfig
from training.decoder import Decoder
from training.presets import PRESETS


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save_model(tmp_path / "model", Decoder(PRESETS["llama-tiny"]))
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["llama-tiny", "gpt2-tiny", "retnet-moe-tiny"])
@pytest.mark.parametrize("is_tied", [True, False])
def test_a_loaded_model_gives_identical_logits(tmp_path: Path, name: str, is_tied: bool) -> None:
    config = ModelConfig(**PRESETS[name].model_dump() | {"tied_head": is_tied, "head_bias": True})
    decoder = Decoder(config)
    save_model(tmp_path / "model", decoder)
    loaded = load_model(tmp_path / "model")
    ids = torch.randint(0, 256, (2, 9))
    assert loaded.config == config
    assert torch.equal(loaded(ids)[0], decoder(ids)[0])
    assert loaded.num_parameters() == decoder.num_parameters()
    assert (loaded.head.weight is loaded.embedding.weight) == is_tied


def test_a_tied_head_is_stored_once(saved: Path) -> None:
    tensors = load_file(saved / "model.safetensors")
    assert "embedding.weight" in tensors
    assert "head.weight" not in tensors


def test_a_loaded_model_can_be_trained_on(saved: Path) -> None:
    decoder = load_model(saved)
    decoder(torch.arange(5)[None])[0].square().sum().backward()
    assert all(parameter.grad is not None for parameter in decoder.parameters())


def test_companions_lie_beside_the_model_as_they_are(tmp_path: Path) -> None:
    files = {"tokenizer.json": "{}", "chat_template.jinja": "{{ 'né' }}\n"}
    save_model(tmp_path / "model", Decoder(PRESETS["llama-tiny"]), companions=files)
    found = {path.name: path for path in (tmp_path / "model").iterdir()}
    assert set(found) == {"config.json", "model.safetensors", *files}
    assert found["chat_template.jinja"].read_text(encoding="utf-8") == files["chat_template.jinja"]
    assert stat.S_IMODE(os.stat(tmp_path / "model").st_mode) & 0o500 == 0o500


@pytest.mark.parametrize("name", ["../tokenizer.json", "config.json", "model.safetensors", "a/b"])
def test_a_companion_must_have_a_plain_free_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="give a plain file name other than"):
        save_model(tmp_path / "model", Decoder(PRESETS["llama-tiny"]), companions={name: ""})
    assert list(tmp_path.iterdir()) == []


def test_an_existing_model_is_replaced_only_on_request(saved: Path) -> None:
    with pytest.raises(FileExistsError, match="exists: choose another directory"):
        save_model(saved, Decoder(PRESETS["gpt2-tiny"]))
    assert load_model(saved).config == PRESETS["llama-tiny"]
    save_model(saved, Decoder(PRESETS["gpt2-tiny"]), replace=True)
    assert load_model(saved).config == PRESETS["gpt2-tiny"]
    assert list(saved.parent.iterdir()) == [saved]


def fail_while_writing(path: Path) -> None:
    with atomic_directory(path, replace=True) as fresh:
        (fresh / "half").write_text("half")
        raise KeyboardInterrupt


@pytest.mark.parametrize("exists", [True, False])
def test_a_failed_write_leaves_everything_as_it_was(tmp_path: Path, exists: bool) -> None:
    path = tmp_path / "model"
    if exists:
        path.mkdir()
        (path / "old").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        fail_while_writing(path)
    assert [entry.name for entry in tmp_path.rglob("*")] == (["model", "old"] if exists else [])


def test_the_old_directory_comes_back_when_the_new_cannot_take_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").write_text("old")
    rename = Path.rename

    def refuse_new(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("disk is full")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", refuse_new)
    with pytest.raises(OSError, match="disk is full"), atomic_directory(path, replace=True):
        pass
    assert [entry.name for entry in tmp_path.rglob("*")] == ["model", "old"]


def truncate(path: Path) -> None:
    weights = path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


def overwrite_header(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"\xff" * 100)


def drop_a_tensor(path: Path) -> None:
    tensors = load_file(path / "model.safetensors")
    del tensors["layers.1.ffn.up.weight"]
    save_file(tensors, path / "model.safetensors")


def change_config(**changes: object) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        fields = json.loads((path / "config.json").read_text())
        (path / "config.json").write_text(json.dumps(fields | changes))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"model\.safetensors is truncated or corrupt"),
        (overwrite_header, r"model\.safetensors is truncated or corrupt"),
        (lambda path: (path / "model.safetensors").unlink(), r"model\.safetensors is missing"),
        (drop_a_tensor, r"model\.safetensors does not fit .*config\.json.*layers\.1\.ffn\.up\.weight"),
        (change_config(d_model=96), r"model\.safetensors does not fit .*size mismatch"),
        (lambda path: (path / "config.json").unlink(), r"config\.json is missing: a model directory holds"),
        (lambda path: (path / "config.json").write_text("{"), r"config\.json is not JSON"),
        (lambda path: (path / "config.json").write_bytes(b"\xff"), r"config\.json is not JSON"),
        (change_config(norm="batchnorm"), r"config\.json: norm = 'batchnorm': Input should be 'layernorm'"),
        (change_config(num_kv_heads=3), r"config\.json: .*num_kv_heads is 3"),
    ],
)
def test_a_broken_model_is_named_with_its_problem(
    saved: Path, damage: Callable[[Path], None], message: str
) -> None:
    damage(saved)
    with pytest.raises(CheckpointError, match=f"(?s){message}"):
        load_model(saved)

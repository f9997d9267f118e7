"""Weights in files: shards, narrow types, tied heads, and how much memory reading takes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from export.errors import ExportError
from export.formats.readers import open_checkpoint, read_model
from export.formats.weight_files import find_weights
from tests.export.hf_models import CASES, write_model
from training.decoder import Decoder

BY_NAME = {f"{case.model_type}-{case.name}": case for case in CASES}
IDS = torch.arange(20)[None]


def logits(decoder: Decoder) -> torch.Tensor:
    with torch.no_grad():
        return decoder.eval()(IDS)[0]


def save_as_bin(directory: Path) -> None:
    path = directory / "model.safetensors"
    torch.save(load_file(path), directory / "pytorch_model.bin")
    path.unlink()


@pytest.mark.parametrize("name", ["llama-grouped", "mixtral-experts", "gpt2-tied"])
@pytest.mark.parametrize("form", ["shards", "bin", "bin shards", "file", "bin file"])
def test_every_form_of_the_weights_gives_the_same_model(name: str, form: str, tmp_path: Path) -> None:
    model = BY_NAME[name].make()
    expected = logits(read_model(write_model(tmp_path / "whole", model)).decoder)
    sharding = {"max_shard_size": "100KB"} if "shards" in form else {}
    directory = write_model(tmp_path / "other", model, **sharding)
    if form == "bin shards":
        for shard in directory.glob("*.safetensors"):
            torch.save(load_file(shard), shard.with_suffix(".bin"))
            shard.unlink()
        index = directory / "model.safetensors.index.json"
        text = index.read_text().replace(".safetensors", ".bin")
        index.with_name("pytorch_model.bin.index.json").write_text(text)
        index.unlink()
    elif "bin" in form:
        save_as_bin(directory)
    if "shards" in form:
        assert len(find_weights(directory)) > 2
    path = find_weights(directory)[0] if "file" in form else directory
    assert torch.equal(logits(read_model(path).decoder), expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("form", ["safetensors", "bin"])
def test_other_floats_become_float32_with_their_very_values(
    dtype: torch.dtype, form: str, tmp_path: Path
) -> None:
    model = BY_NAME["qwen2-biases"].make().to(dtype)
    write_model(tmp_path, model)
    if form == "bin":
        save_as_bin(tmp_path)
    decoder = read_model(tmp_path).decoder
    weights = decoder.state_dict()
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    stored = model.state_dict()
    assert torch.equal(
        weights["layers.1.mixer.key.bias"], stored["model.layers.1.self_attn.k_proj.bias"].float()
    )
    assert torch.equal(weights["embedding.weight"], stored["model.embed_tokens.weight"].float())


def test_names_without_the_usual_prefix_are_known_too(tmp_path: Path) -> None:
    model = BY_NAME["gpt2-tied"].make()
    expected = logits(read_model(write_model(tmp_path, model)).decoder)
    path = tmp_path / "model.safetensors"
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in load_file(path).items()}
    tensors["h.0.attn.bias"] = torch.ones(1, 1, 256, 256).tril()
    save_file(tensors, path)
    assert torch.equal(logits(read_model(tmp_path).decoder), expected)


def change_tensors(directory: Path, change: dict[str, Any]) -> None:
    path = directory / "model.safetensors"
    tensors = load_file(path) | change
    save_file({name: tensor for name, tensor in tensors.items() if tensor is not None}, path)


def test_a_tied_head_may_be_stored_and_must_be_the_embedding(tmp_path: Path) -> None:
    write_model(tmp_path, BY_NAME["llama-tied"].make())
    embedding = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"]
    change_tensors(tmp_path, {"lm_head.weight": embedding.clone()})
    assert read_model(tmp_path).decoder.config.tied_head
    change_tensors(tmp_path, {"lm_head.weight": embedding + 1})
    with pytest.raises(ExportError, match=r"lm_head\.weight differs from the embedding"):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model.norm.weight": None}, r"lacks 1 tensors, first norm\.weight"),
        ({"model.layers.0.odd.weight": torch.ones(3)}, r"1 unknown tensors, first layers\.0\.odd\.weight"),
        (
            {"model.norm.weight": torch.ones(63)},
            "has the shape 63, which makes norm.weight 63; .* asks for 64",
        ),
        ({"model.norm.weight": torch.full((64,), torch.nan)}, "norm.weight holds values that are no finite"),
        ({"model.norm.weight": torch.full((64,), -torch.inf)}, "norm.weight holds values that are no finite"),
        (
            {"model.norm.weight": torch.ones(64, dtype=torch.int8)},
            "is stored as I8; weights are read from F64",
        ),
        ({"lm_head.weight": None}, r"lacks 1 tensors, first lm_head\.weight"),
        (
            {"model.layers.1.block_sparse_moe.experts.2.w3.weight": torch.ones(95, 64)},
            "have the shapes 96x64 and 95x64; they must be alike",
        ),
        ({"model.layers.0.block_sparse_moe.gate.weight": torch.ones(5, 64)}, "asks for 4x64"),
    ],
)
def test_weights_that_do_not_fit_are_refused(change: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    write_model(tmp_path, BY_NAME["mixtral-experts"].make())
    change_tensors(tmp_path, change)
    with pytest.raises(ExportError, match=sentence):
        read_model(tmp_path)


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        ({}, "no weight_map"),
        ([], "no weight_map"),
        ({"norm": "../model.safetensors"}, r"in '\.\./model\.safetensors'; a shard is a \.safetensors file"),
        ({"norm": "/etc/passwd"}, "in '/etc/passwd'; a shard is"),
        ({"norm": "model.safetensors.index.json"}, "a shard is a .safetensors file beside it"),
        ({"norm": "sub/model.safetensors"}, "a shard is a .safetensors file beside it"),
        ({"norm": 7}, "in 7; a shard is"),
        ({"norm": "gone.safetensors"}, "gone.safetensors is missing"),
    ],
)
def test_an_index_names_files_beside_it_only(weight_map: object, sentence: str, tmp_path: Path) -> None:
    write_model(tmp_path, BY_NAME["llama-grouped"].make())
    (tmp_path / "model.safetensors").rename(tmp_path.parent / "model.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ExportError, match=sentence):
        read_model(tmp_path)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_model(tmp_path, BY_NAME["llama-grouped"].make(), max_shard_size="100KB")
    first, second = find_weights(tmp_path)[:2]
    save_file(load_file(second) | load_file(first), second)
    with pytest.raises(ExportError, match=f"is in {first.name} and in {second.name}"):
        open_checkpoint(tmp_path)


MEASURE = """
import resource, sys
from pathlib import Path
from export.formats.readers import open_checkpoint

def peak():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024

checkpoint = open_checkpoint(Path(sys.argv[1]))
before = peak()
decoder = checkpoint.read().decoder
size = 4 * decoder.num_parameters()
print((peak() - before) / size)
"""


@pytest.mark.parametrize("form", ["safetensors", "bin", "shards"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_reading_takes_little_more_memory_than_the_model(
    form: str, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = BY_NAME["llama-grouped"].make(num_hidden_layers=24, hidden_size=512, intermediate_size=2048)
    write_model(tmp_path, model.to(dtype), max_shard_size="50MB" if form == "shards" else "1GB")
    if form == "bin":
        save_as_bin(tmp_path)
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert 0.9 < float(done.stdout) <= 1.3

"""Embedders: graphs equal to PyTorch, three directories installed, encoders read as what they are."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from typer.testing import CliRunner, Result

from export.__main__ import app as export_app
from export.embedder_graph import DecoderBody, Embedder, graph_from_embedder, pool
from export.import_command import app as import_app
from tests.export.conftest import CONFIGS, make_decoder
from tests.packaged_graphs import MINILM, packaged
from training.checkpoint import save_model
from training.decoder import Decoder
from training.presets import preset

SIZES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
}
# Vectors have length 1; float32 in another order of summation.
ATOL = 1e-5


def ragged(vocab_size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids (4, 40) and the mask of 40, 1, 7 and 33 of them."""
    torch.manual_seed(1)
    lengths = torch.tensor([40, 1, 7, 33])
    return torch.randint(5, vocab_size, (4, 40)), (torch.arange(40) < lengths[:, None]).long()


def vectors_of(path: Path, ids: torch.Tensor, mask: torch.Tensor) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})[0]


def own_pooling(hidden: torch.Tensor, pooling: str) -> torch.Tensor:
    """The vector of one text, hidden (T, C), written out."""
    vector = {"mean": hidden.mean(0), "last": hidden[-1], "cls": hidden[0]}[pooling]
    return vector / vector.pow(2).sum().sqrt()


def hidden_of(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    """What goes into a decoder's head, (T, C), seen by a hook."""
    seen: list[torch.Tensor] = []
    handle = decoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    decoder(ids[None])
    handle.remove()
    return seen[0].flatten(0, -2)


@pytest.mark.parametrize("pooling", ["mean", "last"])
@pytest.mark.parametrize("name", [*CONFIGS, "bayesian-tiny"])
def test_a_decoders_vectors_are_pytorchs_pooled_by_hand(name: str, pooling: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    decoder = make_decoder(name) if name in CONFIGS else Decoder(preset(name)).eval()
    path = graph_from_embedder(
        Embedder(DecoderBody(decoder), pooling), tmp_path / "model.onnx", max_length=decoder.config.max_length
    )
    ids, mask = ragged(decoder.config.vocab_size)
    with torch.no_grad():
        expected = [
            own_pooling(hidden_of(decoder, row[: int(own.sum())]), pooling)
            for row, own in zip(ids, mask, strict=True)
        ]
    found = vectors_of(path, ids, mask)
    np.testing.assert_allclose(found, torch.stack(expected), atol=ATOL)
    assert not np.allclose(found[0], found[3], atol=0.01), "texts must matter"


def test_pooling_ignores_padding() -> None:
    hidden, mask = torch.tensor([[[1.0], [3.0], [99.0]]]), torch.tensor([[1, 1, 0]])
    assert [pool(hidden, mask, how).item() for how in ("mean", "last", "cls")] == [2.0, 3.0, 1.0]


def write_encoder(directory: Path, kind: str) -> Any:
    """A random encoder with the tokenizer of MiniLM beside it; returns transformers' model."""
    classes = {"bert": "Bert", "roberta": "Roberta", "distilbert": "DistilBert"}
    torch.manual_seed(3)
    config = getattr(transformers, f"{classes[kind]}Config")(vocab_size=30522, pad_token_id=0, **SIZES)
    if kind == "distilbert":
        config = transformers.DistilBertConfig(
            dim=32, n_layers=2, n_heads=4, hidden_dim=48, max_position_embeddings=64
        )
    model = getattr(transformers, f"{classes[kind]}Model")(config).eval()
    model.save_pretrained(directory)
    shutil.copy(packaged(*MINILM) / "tokenizer.json", directory)
    return model


def import_(source: Path, repository: Path, *options: str) -> Result:
    return CliRunner().invoke(
        import_app, [str(source), "--name", "e", "--repository", str(repository), *options]
    )


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert"])
def test_an_encoder_of_transformers_gives_the_mean_of_its_hidden_states(kind: str, tmp_path: Path) -> None:
    model = write_encoder(tmp_path / kind, kind)
    result = import_(tmp_path / kind, tmp_path / "repository")
    assert result.exit_code == 0, result.output
    ids, mask = ragged(30522)
    found = vectors_of(tmp_path / "repository" / "e_embedder" / "1" / "model.onnx", ids, mask)
    with torch.no_grad():
        for row, own, vector in zip(ids, mask, found, strict=True):
            alone = row[None, : int(own.sum())]
            hidden = model(input_ids=alone, attention_mask=torch.ones_like(alone)).last_hidden_state[0]
            np.testing.assert_allclose(vector, own_pooling(hidden, "mean"), atol=ATOL)
    settings = json.loads(
        (tmp_path / "repository" / "e_embedding_tokenizer" / "1" / "embedding.json").read_text()
    )
    assert settings == {"max_length": 64 if kind != "bert" else 66, "pad": 0}


def test_a_decoders_embedder_is_installed_once_beside_the_model(tmp_path: Path) -> None:
    tokenizer = packaged(*MINILM) / "tokenizer.json"
    config = '{"bos_token": "[CLS]", "eos_token": "[SEP]", "add_bos_token": true}'
    companions = {"tokenizer.json": tokenizer.read_text(), "tokenizer_config.json": config}
    changes = {"vocab_size": 30522, "max_length": 64}
    decoder = Decoder(preset("llama-tiny").model_copy(update=changes))
    save_model(tmp_path / "checkpoint", decoder, companions=companions)
    arguments = ["--model", "tiny", "--source", str(tmp_path / "checkpoint"), "--embedder", "last"]
    arguments += ["--repository", str(tmp_path / "repository")]
    result = CliRunner().invoke(export_app, arguments)
    assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "repository").iterdir()} == {
        "tiny_embedder",
        "tiny_embedding",
        "tiny_embedding_tokenizer",
    }
    assert "is there and unchanged" in CliRunner().invoke(export_app, arguments).output
    installed = tmp_path / "repository" / "tiny_embedding_tokenizer" / "1" / "tokenizer.json"
    assert Tokenizer.from_file(str(installed)).encode("hello").tokens[:2] == ["[CLS]", "hello"]


def break_(directory: Path, name: str, **changes: Any) -> None:
    path = directory / name
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


HOSTILE: dict[str, Any] = {
    "a tensor is missing": (lambda d: break_(d, "config.json", num_hidden_layers=3), "lacks 16 tensors"),
    "too large": (lambda d: break_(d, "config.json", vocab_size=1 << 40), "can't hold as many"),
    "other shapes": (lambda d: break_(d, "config.json", intermediate_size=64), "can't be read|lacks"),
    "odd width": (lambda d: break_(d, "config.json", hidden_size=33), "can't be read as a bert"),
    "cut": (lambda d: (d / "model.safetensors").write_bytes(b"x" * 3_000_000), "can't be read as a bert"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "holds no model.safetensors"),
    "no tokenizer": (lambda d: (d / "tokenizer.json").unlink(), "holds no tokenizer.json"),
    "modules": (
        lambda d: (d / "modules.json").write_text('[{"type": "os.system", "path": "x"}]'),
        "asks for system",
    ),
    "no list": (lambda d: (d / "modules.json").write_text("7"), "is no list of modules"),
    "path": (
        lambda d: (d / "modules.json").write_text('[{"type": "a.Pooling", "path": "../../x"}]'),
        "one directory beside it is needed",
    ),
}


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_damaged_encoder_is_refused_in_one_sentence(name: str, tmp_path: Path) -> None:
    damage, sentence = HOSTILE[name]
    write_encoder(tmp_path / "bert", "bert")
    damage(tmp_path / "bert")
    result = import_(tmp_path / "bert", tmp_path / "repository")
    assert result.exit_code == 1
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("trident import: ")]

    assert re.search(sentence, line), line
    assert not (tmp_path / "repository").exists()

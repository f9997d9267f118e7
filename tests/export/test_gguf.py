"""GGUF import: weights against transformers reading the same file, and one clear sentence per broken file."""

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from export.errors import ExportError
from export.formats.gguf import open_gguf
from export.formats.imported import ImportedModel
from export.formats.origins import unpermute
from tests.export.tiny_gguf import TinyLlama

Q = gguf.GGMLQuantizationType


def read_gguf(path: Path) -> ImportedModel:
    return open_gguf(path).read()


def transformers_logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    with torch.no_grad():
        logits: torch.Tensor = model.eval()(ids).logits
    return logits


@pytest.mark.parametrize(
    "tiny",
    [
        TinyLlama(),
        TinyLlama(heads=4, kv_heads=2, has_head=True),
        TinyLlama(quantization=Q.Q8_0),
        TinyLlama(quantization=Q.Q4_1, heads=3, kv_heads=3),
        TinyLlama(quantization=Q.F16, layers=1),
    ],
    ids=["tied", "own-head", "q8_0", "q4_1", "f16"],
)
def test_an_imported_file_gives_the_logits_that_transformers_gives(tiny: TinyLlama, tmp_path: Path) -> None:
    path = tiny.write(tmp_path / "tiny.gguf")
    ids = torch.randint(0, 300, (1, 40), generator=torch.Generator().manual_seed(0)) % 280
    with torch.no_grad():
        ours, _ = read_gguf(path).decoder(ids)
    # Same float32 weights, sums in another order: logits are around 10, so 1e-4 is a few hundred ulps.
    torch.testing.assert_close(ours, transformers_logits(path, ids), atol=1e-4, rtol=1e-4)


def test_biases_are_permuted_with_the_rows_they_belong_to(tmp_path: Path) -> None:
    tiny = TinyLlama(has_bias=True)
    decoder = read_gguf(tiny.write(tmp_path / "tiny.gguf")).decoder
    stored, read = (
        tiny.tensors()["blk.0.attn_q.bias"],
        decoder.state_dict()["layers.0.mixer.query.bias"].numpy(),
    )
    # GGUF keeps the two channels of a rotated pair beside each other, we keep them half a head apart.
    assert read[1] == stored[2]
    assert read[32] == stored[1]
    assert read[64 + 33] == stored[64 + 3]


def test_unpermute_undoes_the_interleaving_at_head_dim_64() -> None:
    ours = np.arange(2 * 64 * 3).reshape(128, 3)
    interleaved = np.stack((ours.reshape(2, 2, 32, 3)[:, 0], ours.reshape(2, 2, 32, 3)[:, 1]), axis=2)
    read = unpermute(torch.from_numpy(interleaved.reshape(128, 3)), 2)
    np.testing.assert_array_equal(read.numpy(), ours)


@pytest.mark.parametrize(
    ("tiny", "message"),
    [
        (TinyLlama(architecture="mamba"), "'mamba'; supported is 'llama'"),
        (TinyLlama(leave_out="llama.block_count"), "its metadata has no llama.block_count"),
        (TinyLlama(leave_out="blk.1.ffn_up.weight"), r"lacks 1 tensors, first blk\.1\.ffn_up\.weight"),
        (
            TinyLlama(extra={"blk.0.odd.weight": np.zeros(4, np.float32)}),
            r"has 1 unknown tensors, first blk\.0\.odd",
        ),
        (
            TinyLlama(extra={"output_norm.weight": np.zeros(7, np.float32)}),
            "output_norm.weight has the shape 7, which makes norm.weight 7",
        ),
        (TinyLlama(extra={"rope_freqs.weight": np.ones(32, np.float32)}), "scaled rotary positions"),
        (TinyLlama(extra_keys={"llama.expert_count": 8}), "uses experts"),
        (TinyLlama(pre="tekken"), "'tekken'; supported are gpt-2, llama-bpe, smollm"),
        (TinyLlama(tokenizer_model="bert"), "tokenizer.ggml.model is 'bert'; supported are gpt2, llama"),
    ],
)
def test_a_file_that_cannot_be_imported_is_refused_in_one_sentence(
    tiny: TinyLlama, message: str, tmp_path: Path
) -> None:
    path = tiny.write(tmp_path / "odd.gguf")
    with pytest.raises(ExportError, match=message) as caught:
        read_gguf(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.999, 0.5, 0.02, 0.001])
def test_a_file_that_was_cut_off_is_named(keep: float, tmp_path: Path) -> None:
    whole = TinyLlama().write(tmp_path / "whole.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ExportError, match=r"cut\.gguf is cut off or damaged"):
        read_gguf(cut)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (b"", "starts with b''"),
        (b"PK\x03\x04abcd", "a GGUF file starts with b'GGUF'"),
        (b"GGUF\x01\0\0\0", "version 1; supported are little-endian 2 and 3"),
        (b"GGUF\0\0\0\x03", "version 50331648"),
    ],
)
def test_another_magic_or_version_is_refused(head: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    path.write_bytes(head)
    with pytest.raises(ExportError, match=message):
        read_gguf(path)

"""The formats before GGUF: the logits of transformers from the same weights, and blocks decoded by hand."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from export.errors import ExportError
from export.formats.ggml import open_ggml
from export.formats.readers import read_model
from tests.export.ggml_files import D_FF, HEADS, LAYERS, MAGICS, VOCABULARY, WIDTH, TinyGgml, pieces

NAMES = {
    "self_attn.q_proj": "attention.wq",
    "self_attn.k_proj": "attention.wk",
    "self_attn.v_proj": "attention.wv",
    "self_attn.o_proj": "attention.wo",
    "mlp.gate_proj": "feed_forward.w1",
    "mlp.down_proj": "feed_forward.w2",
    "mlp.up_proj": "feed_forward.w3",
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.embed_tokens": "tok_embeddings",
    "model.norm": "norm",
    "lm_head": "output",
}


@pytest.fixture(scope="module")
def llama() -> LlamaForCausalLM:
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=D_FF,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        max_position_embeddings=2048,
        rms_norm_eps=1e-6,
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.1)
    return model


def interleave(rows: np.ndarray) -> np.ndarray:
    """From Hugging Face's order of q and k to Meta's, in which the pairs of a rotation are neighbours."""
    halves = rows.reshape(HEADS, 2, WIDTH // HEADS // 2, WIDTH)
    return np.stack([halves[:, 0], halves[:, 1]], axis=2).reshape(WIDTH, WIDTH)


def meta_tensors(model: LlamaForCausalLM) -> dict[str, np.ndarray]:
    tensors = {}
    for name, tensor in model.state_dict().items():
        values = tensor.numpy()
        values = interleave(values) if "q_proj" in name or "k_proj" in name else values
        for theirs, metas in NAMES.items():
            name = name.replace(theirs, metas)
        tensors[name.removeprefix("model.")] = values
    return tensors


VERSIONS = [("ggml", 0), ("ggmf", 1), ("ggjt", 1), ("ggjt", 2), ("ggjt", 3)]


@pytest.mark.parametrize(("magic", "number"), VERSIONS)
def test_every_version_gives_the_logits_of_transformers(
    magic: str, number: int, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    path = TinyGgml(magic, number).write(tmp_path / "old.bin", meta_tensors(llama))
    ids = torch.arange(40)[None] * 7 % VOCABULARY
    with torch.no_grad():
        expected, (actual, _) = llama(ids).logits, read_model(path).decoder.eval()(ids)
    assert expected.std() > 0.3
    # The project's bound for float32: the same weights, sums in another order.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", ["F16", "Q4_0", "Q4_1", "Q8_0"])
@pytest.mark.parametrize(("magic", "number"), VERSIONS)
def test_blocks_say_what_they_were_written_to_say(
    kind: str, magic: str, number: int, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    tiny = TinyGgml(magic, number, kind)
    path = tiny.write(tmp_path / "old.bin", meta_tensors(llama))
    if kind == "Q8_0" and number < 2:
        with pytest.raises(ExportError, match=r"is stored as type 8; read are F32, F16, Q4_0, Q4_1"):
            open_ggml(path)
        return
    weights = open_ggml(path).read().decoder.state_dict()
    for ours, theirs in (
        ("layers.1.mixer.value.weight", "layers.1.attention.wv.weight"),
        ("head.weight", "output.weight"),
    ):
        np.testing.assert_array_equal(weights[ours].numpy(), tiny.meant[theirs])


def test_the_vocabulary_becomes_a_sentencepiece_tokenizer(llama: LlamaForCausalLM, tmp_path: Path) -> None:
    checkpoint = open_ggml(TinyGgml().write(tmp_path / "old.bin", meta_tensors(llama)))
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.tokenizer)
    first = 3 + 256
    assert tokenizer.encode("the cat").ids == [first + 2, first + 5]
    assert tokenizer.encode("é").ids == [first + 6, 3 + 0xC3, 3 + 0xA9]  # a space, then bytes
    assert tokenizer.decode(tokenizer.encode("the cat, é").ids) == "the cat, é"
    assert (checkpoint.special_tokens.bos, checkpoint.special_tokens.eos) == (1, (2,))


@pytest.mark.parametrize(
    ("tiny", "sentence"),
    [
        (TinyGgml("ggla", 1), "a LoRA adapter of llama.cpp, not a model"),
        (TinyGgml("ggsn", 1), "a saved session of llama.cpp, not a model"),
        (TinyGgml("ggjt", 4), "ggjt in version 4 is not known; ggjt goes to 3"),
        (TinyGgml(header={"vocab": -1}), "sizes of -1 tokens"),
        (TinyGgml(header={"rot": 8}), "8 channels of each head are rotated"),
        (TinyGgml(header={"layer": 3}), r"lacks 9 tensors, first layers\.2\.attention\.wk\.weight"),
        (TinyGgml(header={"layer": 0}), "num_layers = 0"),
        (TinyGgml(header={"mult": 256}), "which makes layers.0.ffn.gate.weight 192x64; .* asks for 256x64"),
        (TinyGgml(vocabulary=pieces()[:200]), "a vocabulary of 200 tokens is too small"),
        (TinyGgml(vocabulary=[*pieces()[:-1], b" the"]), "holds a token twice"),
        (TinyGgml(vocabulary=[*pieces()[:-1], b"\xff"]), "cut off or damaged"),
        (TinyGgml(vocabulary=[*pieces()[:-1], b"a" * 5000]), "token 299 is 5000 bytes long"),
    ],
)
def test_what_is_no_model_is_refused_in_one_sentence(
    tiny: TinyGgml, sentence: str, llama: LlamaForCausalLM, tmp_path: Path
) -> None:
    path = tiny.write(tmp_path / "odd.bin", meta_tensors(llama))
    with pytest.raises(ExportError, match=sentence) as caught:
        read_model(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("keep", [0.99, 0.5, 0.05, 0.001])
def test_a_file_that_was_cut_off_is_named(keep: float, llama: LlamaForCausalLM, tmp_path: Path) -> None:
    whole = TinyGgml().bytes(meta_tensors(llama))
    path = tmp_path / "cut.bin"
    path.write_bytes(whole[: int(len(whole) * keep)])
    with pytest.raises(ExportError, match=r"cut\.bin.*cut off"):
        read_model(path)


def test_the_magics_are_those_that_lie_in_files() -> None:
    assert struct.pack("<I", MAGICS["ggjt"]) == b"tjgg"

"""The bench's weights as GGUF files for llama.cpp, written with the `gguf` package."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from numpy.typing import NDArray
from safetensors.numpy import load_file

Floats = NDArray[np.float32]
Write = Callable[[GGUFWriter], None]

# Types of ggml with the bits of our precisions. Q4_0 is the one that its kernels are fastest in.
BLOCK_TYPES = {"fp32": ("F32",), "int8": ("Q8_0",), "int4": ("Q4_0",)}
EMBEDDING = "token_embd.weight"
LAYERS = "model.layers."
LLAMA_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_from_gguf(source: Path, path: Path, block_type: str) -> None:
    """Write the weights of one GGUF file in another type; what is said about the model stays."""
    reader = GGUFReader(source)

    def copy_fields(writer: GGUFWriter) -> None:
        for name, field in reader.fields.items():
            if not name.startswith("GGUF.") and name != "general.architecture":
                inner = field.types[1] if field.types[0] == GGUFValueType.ARRAY else None
                writer.add_key_value(name, field.contents(), field.types[0], sub_type=inner)

    tensors = ((t.name, gguf.dequantize(t.data, t.tensor_type)) for t in reader.tensors)
    _write(path, copy_fields, tensors, block_type)


def gguf_from_llama(directory: Path, path: Path, block_type: str) -> None:
    """Write a Hugging Face LLaMA with a byte-level BPE tokenizer."""
    config = json.loads((directory / "config.json").read_text())

    def describe(writer: GGUFWriter) -> None:
        _describe_shape(writer, config)
        _describe_tokenizer(writer, json.loads((directory / "tokenizer.json").read_text()))

    weights = load_file(directory / "model.safetensors")
    _write(path, describe, _llama_tensors(weights, config), block_type)


def _write(path: Path, describe: Write, tensors: Iterator[tuple[str, Floats]], block_type: str) -> None:
    """Write beside first and then in place; vectors stay in float32."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    kind = GGMLQuantizationType[block_type]
    writer = GGUFWriter(beside, "llama")
    describe(writer)
    for name, values in tensors:
        of_this = _kind_of(name, values, kind)
        packed = gguf.quantize(np.asarray(values, np.float32), of_this)
        writer.add_tensor(name, packed, raw_dtype=of_this)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    beside.replace(path)


def _kind_of(name: str, values: Floats, kind: GGMLQuantizationType) -> GGMLQuantizationType:
    """Vectors in float32; an embedding, which may be the head too, in no less than 8 bits, as packaged."""
    if values.ndim == 1:
        return GGMLQuantizationType.F32
    if name == EMBEDDING and kind == GGMLQuantizationType.Q4_0:
        return GGMLQuantizationType.Q8_0
    return kind


def _llama_tensors(weights: dict[str, Floats], config: dict[str, int]) -> Iterator[tuple[str, Floats]]:
    heads = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    for name, values in weights.items():
        stem, layer = name.removesuffix(".weight"), ""
        if stem.startswith(LAYERS):
            number, stem = stem.removeprefix(LAYERS).split(".", 1)
            layer = f"blk.{number}."
        ours = LLAMA_NAMES[stem]
        yield f"{layer}{ours}.weight", permute(values, heads[ours]) if ours in heads else values


def permute(values: Floats, num_heads: int) -> Floats:
    """Rows of q or k as ggml rotates them: the two channels of a pair side by side."""
    rows, columns = values.shape
    halves = values.reshape(num_heads, 2, rows // num_heads // 2, columns)
    return halves.swapaxes(1, 2).reshape(rows, columns)


def _describe_shape(writer: GGUFWriter, config: dict[str, int]) -> None:
    head_dim = config["hidden_size"] // config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(head_dim)
    writer.add_vocab_size(config["vocab_size"])


def _describe_tokenizer(writer: GGUFWriter, tokenizer: dict[str, dict]) -> None:
    """The vocabulary; the bench sends token ids, so only its length and its control tokens matter."""
    model, added = tokenizer["model"], {t["content"] for t in tokenizer["added_tokens"] if t["special"]}
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if token in added else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

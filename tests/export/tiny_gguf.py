"""A small llama model written as a GGUF file by the `gguf` package, with a real byte-level BPE vocabulary."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

CONTROL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


def train_vocabulary() -> tuple[list[str], list[str]]:
    """(tokens by id, merges) of a byte-level BPE trained on a few words; control tokens come first."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=list(CONTROL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    words = "the capital of france is paris and the river is the seine  \n\n hello world, hello there "
    tokenizer.train_from_iterator([words * 4], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    return tokens, [" ".join(pair) for pair in model["merges"]]


@dataclass
class TinyLlama:
    """What goes into the file; change a field to get a file with that one thing different."""

    architecture: str = "llama"
    pre: str = "smollm"
    tokenizer_model: str = "gpt2"
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 64
    layers: int = 2
    d_ff: int = 96
    scale: float = 3.0
    quantization: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32
    has_head: bool = False
    has_bias: bool = False
    leave_out: str = ""
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    extra_keys: dict[str, int] = field(default_factory=dict)

    def tensors(self) -> dict[str, np.ndarray]:
        """Random weights by GGUF name, rows first."""
        rng = np.random.default_rng(7)
        width, q, kv = self.heads * self.head_dim, self.heads * self.head_dim, self.kv_heads * self.head_dim
        vocabulary = len(train_vocabulary()[0])
        shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (vocabulary, width)}
        for i in range(self.layers):
            shapes |= {
                f"blk.{i}.attn_norm.weight": (width,),
                f"blk.{i}.attn_q.weight": (q, width),
                f"blk.{i}.attn_k.weight": (kv, width),
                f"blk.{i}.attn_v.weight": (kv, width),
                f"blk.{i}.attn_output.weight": (width, q),
                f"blk.{i}.ffn_norm.weight": (width,),
                f"blk.{i}.ffn_gate.weight": (self.d_ff, width),
                f"blk.{i}.ffn_up.weight": (self.d_ff, width),
                f"blk.{i}.ffn_down.weight": (width, self.d_ff),
            }
            if self.has_bias:
                shapes |= {f"blk.{i}.attn_{n}.bias": (kv if n != "q" else q,) for n in "qkv"}
        shapes["output_norm.weight"] = (width,)
        if self.has_head:
            shapes["output.weight"] = (vocabulary, width)
        scale = {
            name: 1.0 if len(shape) == 1 else self.scale / np.sqrt(shape[-1])
            for name, shape in shapes.items()
        }
        values = {n: (rng.standard_normal(s) * scale[n]).astype(np.float32) for n, s in shapes.items()}
        values |= self.extra
        values.pop(self.leave_out, None)
        return values

    def write(self, path: Path) -> Path:
        """Write the file; matrices in `quantization`, vectors in float32."""
        writer = gguf.GGUFWriter(path, self.architecture)
        self._write_architecture(writer)
        self._write_tokenizer(writer)
        for key, value in self.extra_keys.items():
            writer.add_uint32(key, value)
        for name, values in self.tensors().items():
            if values.ndim == 1 or self.quantization == gguf.GGMLQuantizationType.F32:
                writer.add_tensor(name, values)
            else:
                packed = gguf.quantize(values, self.quantization)
                writer.add_tensor(name, packed, raw_dtype=self.quantization)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    def _write_architecture(self, writer: gguf.GGUFWriter) -> None:
        writer.add_context_length(256)
        writer.add_embedding_length(self.heads * self.head_dim)
        if self.leave_out != "llama.block_count":
            writer.add_block_count(self.layers)
        writer.add_feed_forward_length(self.d_ff)
        writer.add_head_count(self.heads)
        writer.add_head_count_kv(self.kv_heads)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_freq_base(10_000.0)
        writer.add_rope_dimension_count(self.head_dim)
        writer.add_vocab_size(len(train_vocabulary()[0]))

    def _write_tokenizer(self, writer: gguf.GGUFWriter) -> None:
        tokens, merges = train_vocabulary()
        writer.add_tokenizer_model(self.tokenizer_model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(tokens)
        writer.add_token_types(
            [gguf.TokenType.CONTROL if t in CONTROL else gguf.TokenType.NORMAL for t in tokens]
        )
        writer.add_token_merges(merges)
        writer.add_bos_token_id(1)
        writer.add_eos_token_id(2)
        writer.add_pad_token_id(0)
        writer.add_add_bos_token(False)
        writer.add_chat_template(TEMPLATE)

"""GGUF files of the llama architecture: metadata, tokenizer and dequantized weights.

Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md).
"""

from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from export.errors import ExportError
from export.formats.detect import GGUF_MAGIC
from export.formats.fields import Fields
from export.formats.gguf_header import require_sound_header
from export.formats.gguf_tokenizer import special_tokens_from_metadata, tokenizer_files_from_metadata
from export.formats.imported import Checkpoint
from export.formats.origins import Origin, module, sources_for, unpermuted
from export.formats.tensors import TensorInfo, decoder_from_sources, refuse_unknown
from training.checkpoint import describe_errors
from training.config import ModelConfig
from training.decoder import Decoder

VERSIONS = (2, 3)

READABLE = (
    *("F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"),
    *("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"),
)

ORIGINS: dict[str, Origin] = {
    "embedding": module("token_embd"),
    "norm": module("output_norm"),
    "head": module("output"),
    "mixer_norm": module("attn_norm"),
    "mixer.query": unpermuted("attn_q", lambda config: config.num_heads),
    "mixer.key": unpermuted("attn_k", lambda config: config.num_kv_heads),
    "mixer.value": module("attn_v"),
    "mixer.out": module("attn_output"),
    "ffn_norm": module("ffn_norm"),
    "ffn.gate": module("ffn_gate"),
    "ffn.up": module("ffn_up"),
    "ffn.down": module("ffn_down"),
}


class GgufTensors:
    """The tensors of one file, dequantized when they are read."""

    def __init__(self, reader: gguf.GGUFReader) -> None:
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """See Tensors.infos."""
        return {
            name: TensorInfo(tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name)
            for name, tensor in self._tensors.items()
        }

    def read(self, name: str) -> Tensor:
        """See Tensors.read."""
        tensor = self._tensors[name]
        if tensor.tensor_type.name not in READABLE:
            raise ExportError(
                f"{name} is stored as {tensor.tensor_type.name}, which can't be read; what can is "
                f"{', '.join(READABLE)}"
            )
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
        # The file is mapped read-only; torch wants memory of its own.
        return torch.from_numpy(np.array(values, dtype=np.float32))


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the GGUF file at `path`.

    Raises ExportError in one sentence: another magic, version or architecture, a missing key or tensor,
    a quantization that cannot be read, a file that was cut off.
    """
    reader = _open(path)
    tensors = GgufTensors(reader)
    try:
        metadata = _metadata(reader)
        config = config_from_metadata(metadata, tensors.infos.keys())
        return Checkpoint(
            architecture=metadata["general.architecture"],
            config=config,
            infos=tensors.infos,
            tokenizer=tokenizer_files_from_metadata(metadata),
            special_tokens=special_tokens_from_metadata(metadata),
            load=lambda: _load(path, config, tensors),
        )
    except ValidationError as error:
        raise ExportError(f"{path}: {describe_errors(error)}") from error
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def _load(path: Path, config: ModelConfig, tensors: GgufTensors) -> Decoder:
    try:
        sources = sources_for(config, ORIGINS, "blk.{}.")
        refuse_unknown({name for source in sources.values() for name in source.names}, tensors.infos)
        return decoder_from_sources(config, sources, tensors)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def _open(path: Path) -> gguf.GGUFReader:
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != GGUF_MAGIC:
        raise ExportError(f"{path} starts with {head[:4]!r}; a GGUF file starts with {GGUF_MAGIC!r}")
    version = int.from_bytes(head[4:], "little")
    if version not in VERSIONS:
        raise ExportError(f"{path} is GGUF version {version}; supported are little-endian 2 and 3")
    try:
        require_sound_header(path)
        return gguf.GGUFReader(path)
    except (ExportError, ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ExportError(f"{path} is cut off or damaged ({error}): fetch it again") from error


def _metadata(reader: gguf.GGUFReader) -> dict[str, Any]:
    try:
        return {key: field.contents() for key, field in reader.fields.items()}
    except UnicodeDecodeError as error:
        raise ExportError(f"a text in its metadata is not UTF-8: {error}") from error


def config_from_metadata(metadata: Mapping[str, Any], tensors: Set[str]) -> ModelConfig:
    """The architecture that a llama file describes. Raises ExportError, or pydantic's ValidationError."""
    fields = Fields(metadata, "its metadata")
    architecture = fields.text("general.architecture")
    if architecture != "llama":
        raise ExportError(f"general.architecture is {architecture!r}; supported is 'llama'")
    heads, width = fields.integer("llama.attention.head_count"), fields.integer("llama.embedding_length")
    head_dim = fields.integer("llama.attention.key_length", width // max(heads, 1))
    _refuse_variants(fields, tensors, head_dim)
    return ModelConfig(
        vocab_size=len(metadata.get("tokenizer.ggml.tokens", ())),
        max_length=fields.integer("llama.context_length"),
        d_model=width,
        num_layers=fields.integer("llama.block_count"),
        num_heads=heads,
        num_kv_heads=fields.integer("llama.attention.head_count_kv", heads),
        head_dim=head_dim,
        d_ff=fields.integer("llama.feed_forward_length"),
        mixer="attention",
        ffn="swiglu",
        norm_eps=fields.number("llama.attention.layer_norm_rms_epsilon"),
        rope_theta=fields.number("llama.rope.freq_base", 10_000.0),
        biases="qkv" if "blk.0.attn_q.bias" in tensors else "none",
        tied_head="output.weight" not in tensors,
    )


def _refuse_variants(fields: Fields, tensors: Set[str], head_dim: int) -> None:
    """ExportError for what a llama file may say and the decoder would compute otherwise."""
    unsupported = {
        "experts": fields.integer("llama.expert_count", 0) > 0,
        "scaled rotary positions": fields.text("llama.rope.scaling.type", "none") != "none"
        or "rope_freqs.weight" in tensors,
        "rotation of a part of the head": fields.integer("llama.rope.dimension_count", head_dim) != head_dim,
        "values of another width than keys": fields.integer("llama.attention.value_length", head_dim)
        != head_dim,
        "sliding windows": fields.integer("llama.attention.sliding_window", 0) > 0,
    }
    found = [name for name, is_there in unsupported.items() if is_there]
    if found:
        raise ExportError(f"this llama file uses {', '.join(found)}, which is not supported")

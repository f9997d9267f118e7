"""GGUF files of the llama architecture: metadata, tokenizer and dequantized weights.

Source: the GGUF specification (github.com/ggml-org/ggml, docs/gguf.md).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from export.errors import ExportError
from export.formats.detect import GGUF_MAGIC
from export.formats.gguf_tokenizer import special_tokens_from_metadata, tokenizer_files_from_metadata
from export.formats.imported import Checkpoint
from export.formats.tensors import TensorInfo
from training.config import ModelConfig
from training.decoder import Decoder

VERSIONS = (2, 3)

GLOBAL_TENSORS = {
    "token_embd.weight": "embedding.weight",
    "output_norm.weight": "norm.weight",
    "output.weight": "head.weight",
}
LAYER_TENSORS = {
    "attn_norm": "mixer_norm",
    "attn_q": "mixer.query",
    "attn_k": "mixer.key",
    "attn_v": "mixer.value",
    "attn_output": "mixer.out",
    "ffn_norm": "ffn_norm",
    "ffn_gate": "ffn.gate",
    "ffn_up": "ffn.up",
    "ffn_down": "ffn.down",
}
BIASED = ("attn_q", "attn_k", "attn_v")


def open_gguf(path: Path) -> Checkpoint:
    """The checkpoint in the GGUF file at `path`.

    Raises ExportError in one sentence: another magic, version or architecture, a missing key or tensor,
    a quantization that cannot be read, a file that was cut off.
    """
    reader = _open(path)
    try:
        metadata = {key: field.contents() for key, field in reader.fields.items()}
        config = config_from_metadata(metadata, {tensor.name for tensor in reader.tensors})
        return Checkpoint(
            architecture=metadata["general.architecture"],
            config=config,
            infos={tensor.name: _info(tensor) for tensor in reader.tensors},
            tokenizer=tokenizer_files_from_metadata(metadata),
            special_tokens=special_tokens_from_metadata(metadata),
            load=lambda: _load(path, reader, config),
        )
    except KeyError as error:
        raise ExportError(
            f"{path}: the key {error} is missing, so the file does not say what it holds"
        ) from error
    except (ExportError, ValidationError) as error:
        raise ExportError(f"{path}: {error}") from error


def _load(path: Path, reader: gguf.GGUFReader, config: ModelConfig) -> Decoder:
    try:
        return Decoder.from_tensors(config, _weights(reader, config))
    except (ExportError, RuntimeError) as error:
        raise ExportError(f"{path}: {error}") from error


def _info(tensor: gguf.ReaderTensor) -> TensorInfo:
    return TensorInfo(tuple(int(size) for size in reversed(tensor.shape)), tensor.tensor_type.name)


def _open(path: Path) -> gguf.GGUFReader:
    with path.open("rb") as file:
        head = file.read(8)
    if head[:4] != GGUF_MAGIC:
        raise ExportError(f"{path} starts with {head[:4]!r}; a GGUF file starts with {GGUF_MAGIC!r}")
    version = int.from_bytes(head[4:], "little")
    if version not in VERSIONS:
        raise ExportError(f"{path} is GGUF version {version}; supported are little-endian 2 and 3")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OverflowError, TypeError) as error:
        raise ExportError(f"{path} is cut off or damaged ({error}): fetch it again") from error


def config_from_metadata(metadata: Mapping[str, Any], tensors: set[str]) -> ModelConfig:
    """The architecture that a llama file describes; KeyError names a key that is missing."""
    architecture = metadata["general.architecture"]
    if architecture != "llama":
        raise ExportError(f"general.architecture is {architecture!r}; supported is 'llama'")
    llama = _Required(
        {key.removeprefix("llama."): value for key, value in metadata.items() if key.startswith("llama.")}
    )
    heads, width = llama["attention.head_count"], llama["embedding_length"]
    head_dim = llama.get("attention.key_length", width // heads)
    _refuse_variants(llama, tensors, head_dim)
    return ModelConfig(
        vocab_size=len(metadata["tokenizer.ggml.tokens"]),
        max_length=llama["context_length"],
        d_model=width,
        num_layers=llama["block_count"],
        num_heads=heads,
        num_kv_heads=llama.get("attention.head_count_kv", heads),
        head_dim=head_dim,
        d_ff=llama["feed_forward_length"],
        mixer="attention",
        ffn="swiglu",
        norm_eps=llama["attention.layer_norm_rms_epsilon"],
        rope_theta=llama.get("rope.freq_base", 10_000.0),
        biases="qkv" if "blk.0.attn_q.bias" in tensors else "none",
        tied_head="output.weight" not in tensors,
    )


class _Required(dict[str, Any]):
    def __missing__(self, key: str) -> Any:
        raise KeyError(f"llama.{key}")


def _refuse_variants(llama: Mapping[str, Any], tensors: set[str], head_dim: int) -> None:
    """ExportError for what a llama file may say and the decoder would compute otherwise."""
    unsupported = {
        "experts": llama.get("expert_count", 0) > 0,
        "scaled rotary positions": llama.get("rope.scaling.type", "none") != "none"
        or "rope_freqs.weight" in tensors,
        "rotation of a part of the head": llama.get("rope.dimension_count", head_dim) != head_dim,
        "values of another width than keys": llama.get("attention.value_length", head_dim) != head_dim,
        "sliding windows": llama.get("attention.sliding_window", 0) > 0,
    }
    found = [name for name, is_there in unsupported.items() if is_there]
    if found:
        raise ExportError(f"this llama file uses {', '.join(found)}, which is not supported")


def _weights(reader: gguf.GGUFReader, config: ModelConfig) -> dict[str, Tensor]:
    names = tensor_names(config)
    found = {tensor.name: tensor for tensor in reader.tensors}
    for what, odd in (("lacks", names.keys() - found.keys()), ("has unknown", found.keys() - names.keys())):
        if odd:
            raise ExportError(f"the file {what} {len(odd)} tensors, first {min(odd)}")
    return {ours: _tensor(found[theirs], config) for theirs, ours in names.items()}


def tensor_names(config: ModelConfig) -> dict[str, str]:
    """The file's tensor names -> the decoder's."""
    names = dict(GLOBAL_TENSORS)
    if config.tied_head:
        del names["output.weight"]
    for layer in range(config.num_layers):
        for theirs, ours in LAYER_TENSORS.items():
            names[f"blk.{layer}.{theirs}.weight"] = f"layers.{layer}.{ours}.weight"
            if config.biases == "qkv" and theirs in BIASED:
                names[f"blk.{layer}.{theirs}.bias"] = f"layers.{layer}.{ours}.bias"
    return names


def _tensor(tensor: gguf.ReaderTensor, config: ModelConfig) -> Tensor:
    try:
        values = gguf.dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise ExportError(
            f"{tensor.name} is stored as {tensor.tensor_type.name}, which can't be read"
        ) from error
    if ".attn_q." in tensor.name:
        values = unpermute(values, config.num_heads)
    elif ".attn_k." in tensor.name:
        values = unpermute(values, config.num_kv_heads)
    # The file is mapped read-only; torch wants memory of its own.
    return torch.from_numpy(np.require(values, dtype=np.float32, requirements=["C", "W", "O"]))


def unpermute(values: np.ndarray, num_heads: int) -> np.ndarray:
    """Rows of q or k from pairs beside each other (GGUF) to half-split pairs (ours): (H·D, …) -> (H·D, …)."""
    rows, *rest = values.shape
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(rows, *rest)

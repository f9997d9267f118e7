"""LLaMA files of the formats before GGUF: ggml, ggmf, and ggjt in versions 1 to 3.

They say neither their architecture nor the norm's epsilon nor the context: these are LLaMA's of that time.
Source: llama.cpp up to August 2023, its file loader and `convert-pth-to-ggml.py`.
"""

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from pydantic import ValidationError
from torch import Tensor

from export.errors import ExportError
from export.formats.ggml_blocks import VERSION_1, VERSION_2, VERSION_3, BlockType
from export.formats.imported import Checkpoint, TokenizerFiles
from export.formats.origins import Origin, module, sources_for, unpermuted
from export.formats.sentencepiece_bpe import CONTROL, NORMAL, SPACE, UNKNOWN, sentencepiece_tokenizer
from export.formats.tensors import TensorInfo, decoder_from_sources, refuse_unknown
from export.manifest import SpecialTokens
from training.checkpoint import describe_errors
from training.config import ModelConfig
from training.decoder import Decoder

CONTEXT, NORM_EPS = 2048, 1e-6
MAX_TOKENS, MAX_TOKEN_BYTES, MAX_NAME_BYTES = 1 << 20, 1 << 12, 256
BYTE = 6
UNKNOWN_ID, BOS, EOS, FIRST_BYTE = 0, 1, 2, 3
FIRST_PIECE = FIRST_BYTE + 256
ALIGNMENT = 32


@dataclass(frozen=True)
class Version:
    """What one of the formats stores."""

    blocks: Mapping[int, BlockType]
    has_scores: bool = True
    alignment: int = 1


# By magic as it lies in the file, and by the number after it, which the oldest does not have.
VERSIONS: dict[tuple[bytes, int | None], Version] = {
    (b"lmgg", None): Version(VERSION_1, has_scores=False),
    (b"fmgg", 1): Version(VERSION_1),
    (b"tjgg", 1): Version(VERSION_1, alignment=ALIGNMENT),
    (b"tjgg", 2): Version(VERSION_2, alignment=ALIGNMENT),
    (b"tjgg", 3): Version(VERSION_3, alignment=ALIGNMENT),
}
NO_MODELS = {b"algg": "a LoRA adapter", b"nsgg": "a saved session"}

ORIGINS: dict[str, Origin] = {
    "embedding": module("tok_embeddings"),
    "norm": module("norm"),
    "head": module("output"),
    "mixer_norm": module("attention_norm"),
    "mixer.query": unpermuted("attention.wq", lambda config: config.num_heads),
    "mixer.key": unpermuted("attention.wk", lambda config: config.num_kv_heads),
    "mixer.value": module("attention.wv"),
    "mixer.out": module("attention.wo"),
    "ffn_norm": module("ffn_norm"),
    "ffn.gate": module("feed_forward.w1"),
    "ffn.up": module("feed_forward.w3"),
    "ffn.down": module("feed_forward.w2"),
}


@dataclass(frozen=True)
class Entry:
    """Where a tensor lies."""

    info: TensorInfo
    block: BlockType
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of all its blocks."""
        return math.prod(self.info.shape) // self.block.size * self.block.nbytes


class GgmlTensors:
    """The tensors of one file, dequantized when they are read."""

    def __init__(self, path: Path, entries: Mapping[str, Entry]) -> None:
        self._path, self._entries = path, entries

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """See Tensors.infos."""
        return {name: entry.info for name, entry in self._entries.items()}

    def read(self, name: str) -> Tensor:
        """See Tensors.read."""
        entry = self._entries[name]
        raw = np.fromfile(self._path, np.uint8, count=entry.nbytes, offset=entry.offset)
        values = entry.block.decode(raw.reshape(-1, entry.block.nbytes))
        return torch.from_numpy(np.array(values.reshape(entry.info.shape), dtype=np.float32))


def open_ggml(path: Path) -> Checkpoint:
    """The checkpoint in the file at `path`. Raises ExportError in one sentence."""
    size = path.stat().st_size
    with path.open("rb") as file:
        try:
            version = _read_version(file)
            config = _read_config(file)
            pieces, scores = _read_vocabulary(file, config.vocab_size, version)
            tensors = GgmlTensors(path, dict(_read_entries(file, version, size)))
            tokenizer = _tokenizer_files(pieces, scores)
        except (struct.error, UnicodeDecodeError, OverflowError) as error:
            raise ExportError(f"{path} is cut off or damaged ({error}): fetch it again") from error
        except ValidationError as error:
            raise ExportError(f"{path}: {describe_errors(error)}") from error
        except ExportError as error:
            raise ExportError(f"{path}: {error}") from error
    return Checkpoint(
        architecture="llama",
        config=config,
        infos=tensors.infos,
        tokenizer=tokenizer,
        special_tokens=SpecialTokens(bos=BOS, eos=(EOS,), pad=None),
        load=lambda: _load(path, config, tensors),
        oddities=(
            f"its format says neither context nor epsilon: they are taken as {CONTEXT} and {NORM_EPS:g}",
        ),
    )


def _load(path: Path, config: ModelConfig, tensors: GgmlTensors) -> Decoder:
    try:
        sources = sources_for(config, ORIGINS, "layers.{}.")
        refuse_unknown({name for source in sources.values() for name in source.names}, tensors.infos)
        return decoder_from_sources(config, sources, tensors)
    except ExportError as error:
        raise ExportError(f"{path}: {error}") from error


def _integers(file: BinaryIO, count: int) -> tuple[int, ...]:
    return struct.unpack(f"<{count}i", file.read(4 * count))


def _read_version(file: BinaryIO) -> Version:
    magic = file.read(4)
    if magic in NO_MODELS:
        raise ExportError(f"this is {NO_MODELS[magic]} of llama.cpp, not a model")
    number = None if (magic, None) in VERSIONS else _integers(file, 1)[0]
    if (magic, number) not in VERSIONS:
        raise ExportError(f"{magic[::-1].decode('latin-1')} in version {number} is not known; ggjt goes to 3")
    return VERSIONS[magic, number]


def _read_config(file: BinaryIO) -> ModelConfig:
    vocab_size, width, multiple, heads, layers, rotated, _ = _integers(file, 7)
    if not 0 < vocab_size <= MAX_TOKENS or min(width, multiple, heads) <= 0:
        raise ExportError(f"sizes of {vocab_size} tokens, {width} wide, {heads} heads are not a model's")
    if rotated * heads != width:
        raise ExportError(f"{rotated} channels of each head are rotated, of {width} in {heads} heads")
    return ModelConfig(
        vocab_size=vocab_size,
        max_length=CONTEXT,
        d_model=width,
        num_layers=layers,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=rotated,
        d_ff=-(-(8 * width // 3) // multiple) * multiple,
        mixer="attention",
        ffn="swiglu",
        norm_eps=NORM_EPS,
        tied_head=False,
    )


def _read_vocabulary(file: BinaryIO, count: int, version: Version) -> tuple[list[bytes], list[float]]:
    """Pieces by id, with plain spaces; without scores in the file they fall with the id."""
    pieces, scores = [], []
    for index in range(count):
        (length,) = _integers(file, 1)
        if not 0 <= length <= MAX_TOKEN_BYTES:
            raise ExportError(f"token {index} is {length} bytes long; at most {MAX_TOKEN_BYTES} are read")
        pieces.append(file.read(length))
        scores.append(struct.unpack("<f", file.read(4))[0] if version.has_scores else -float(index))
    return pieces, scores


def _read_entries(file: BinaryIO, version: Version, size: int) -> Iterator[tuple[str, Entry]]:
    seen: set[str] = set()
    while file.tell() < size:
        dimensions, length, kind = _integers(file, 3)
        if dimensions not in (1, 2) or not 0 < length <= MAX_NAME_BYTES:
            raise ExportError(f"a tensor of {dimensions} dimensions with a name of {length} bytes: damaged")
        shape = tuple(reversed(_integers(file, dimensions)))
        name = file.read(length).decode()
        if name in seen:
            raise ExportError(f"{name} is there twice")
        if kind not in version.blocks:
            known = ", ".join(block.name for block in version.blocks.values())
            raise ExportError(f"{name} is stored as type {kind}; read are {known} in this version")
        block = version.blocks[kind]
        if min(shape) <= 0 or shape[-1] % block.size:
            raise ExportError(f"{name} has the shape {shape}, which blocks of {block.size} do not fill")
        offset = -(-file.tell() // version.alignment) * version.alignment
        entry = Entry(TensorInfo(shape, block.name), block, offset)
        if offset + entry.nbytes > size:
            raise ExportError(f"the file is cut off within {name}: fetch it again")
        seen.add(name)
        file.seek(offset + entry.nbytes)
        yield name, entry


def _tokenizer_files(pieces: list[bytes], scores: list[float]) -> TokenizerFiles:
    """The vocabulary with SentencePiece's names for its first tokens: unknown, begin, end, and the bytes."""
    if len(pieces) <= FIRST_PIECE:
        raise ExportError(
            f"a vocabulary of {len(pieces)} tokens is too small for LLaMA's, which has all bytes"
        )
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    kinds = [UNKNOWN, CONTROL, CONTROL, *[BYTE] * 256]
    tokens += [piece.decode().replace(" ", SPACE) for piece in pieces[FIRST_PIECE:]]
    kinds += [NORMAL] * (len(pieces) - FIRST_PIECE)
    if any(one == other for one, other in pairwise(sorted(tokens))):
        raise ExportError("the vocabulary holds a token twice; every id needs its own")
    return TokenizerFiles(
        tokenizer=sentencepiece_tokenizer(tokens, scores, kinds, adds_space=True).to_str(),
        config={"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    )

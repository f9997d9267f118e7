"""Quantized blocks as the formats before GGUF store them.

Source: llama.cpp up to August 2023, ggml.c; what version 3 of ggjt writes is what GGUF still has.
"""

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class BlockType:
    """`size` weights in `nbytes` bytes; `decode` maps (N, nbytes) to (N, size)."""

    name: str
    size: int
    nbytes: int
    decode: Callable[[Bytes], Floats]


def _as(blocks: Bytes, dtype: str) -> Floats:
    return np.ascontiguousarray(blocks).view(dtype).astype(np.float32)


def _neighbours(packed: Bytes) -> Floats:
    """Byte j holds weights 2j and 2j + 1: the order until version 1."""
    return np.stack((packed & 15, packed >> 4), axis=-1).reshape(len(packed), -1).astype(np.float32)


def _halves(packed: Bytes) -> Floats:
    """Byte j holds weights j and j + 16: the order since version 2."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1).astype(np.float32)


def _q4_0(nibbles: Callable[[Bytes], Floats]) -> Callable[[Bytes], Floats]:
    return lambda blocks: _as(blocks[:, :4], "<f4") * (nibbles(blocks[:, 4:]) - 8)


def _q4_1(nibbles: Callable[[Bytes], Floats]) -> Callable[[Bytes], Floats]:
    return lambda blocks: _as(blocks[:, :4], "<f4") * nibbles(blocks[:, 8:]) + _as(blocks[:, 4:8], "<f4")


def _q8_0(blocks: Bytes) -> Floats:
    return _as(blocks[:, :4], "<f4") * _as(blocks[:, 4:], "i1")


def _as_in_gguf(name: str) -> BlockType:
    kind = gguf.GGMLQuantizationType[name]
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]
    return BlockType(name, size, nbytes, lambda blocks: gguf.dequantize(blocks, kind))


FLOATS = {
    0: BlockType("F32", 1, 4, lambda blocks: _as(blocks, "<f4")),
    1: BlockType("F16", 1, 2, lambda blocks: _as(blocks, "<f2")),
}
VERSION_1 = FLOATS | {
    2: BlockType("Q4_0", 32, 20, _q4_0(_neighbours)),
    3: BlockType("Q4_1", 32, 24, _q4_1(_neighbours)),
}
VERSION_2 = FLOATS | {
    2: BlockType("Q4_0", 32, 20, _q4_0(_halves)),
    3: BlockType("Q4_1", 32, 24, _q4_1(_halves)),
    6: _as_in_gguf("Q5_0"),
    7: _as_in_gguf("Q5_1"),
    8: BlockType("Q8_0", 32, 36, _q8_0),
}
VERSION_3 = FLOATS | {
    number: _as_in_gguf(name)
    for number, name in {
        2: "Q4_0",
        3: "Q4_1",
        6: "Q5_0",
        7: "Q5_1",
        8: "Q8_0",
        10: "Q2_K",
        11: "Q3_K",
        12: "Q4_K",
        13: "Q5_K",
        14: "Q6_K",
    }.items()
}

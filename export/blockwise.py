"""Symmetric weight quantization by blocks: the numbers, without any graph.

A block of consecutive input channels shares one scale: w ≈ scale · q with q in [-2^(bits-1), 2^(bits-1) - 1].
"""

import numpy as np
from numpy.typing import NDArray

SMALLEST_BLOCK = 16  # of ONNX Runtime's operators
ROWS_AT_ONCE = 512  # keeps the temporary copies of a large matrix small
# Scales that are tried, in units of the one that just holds a block's largest weight. In 4 bits clipping it
# often costs less than a coarser grid; in 8 bits a coarser grid may be the one that the weights came on.
STRETCHES = {8: tuple(127 / q for q in range(127, 95, -2)), 4: (1.0, 0.95, 0.9, 0.85, 0.8, 0.75)}


def fitting_block(num_channels: int, wanted: int) -> int:
    """The largest block, `wanted` or a half, quarter, … of it, that divides `num_channels`; at least 16."""
    while wanted > SMALLEST_BLOCK and num_channels % wanted:
        wanted //= 2
    return wanted


def quantize_blocks(
    weight: NDArray[np.floating], *, bits: int, block_size: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Quantize `weight` (..., N, K) along K -> q (..., N, K / block, block), scales (..., N, K / block).

    K is padded with zeros to whole blocks. Each scale is the candidate with the least squared error.
    """
    K = weight.shape[-1]
    padding = -K % block_size
    rows = weight.reshape(-1, K)
    q = np.empty((len(rows), (K + padding) // block_size, block_size), np.int8)
    scales = np.empty(q.shape[:-1], np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        padded = np.pad(rows[part].astype(np.float32), ((0, 0), (0, padding)))
        q[part], scales[part] = _quantize(padded.reshape(q[part].shape), bits)
    return q.reshape(*weight.shape[:-1], *q.shape[1:]), scales.reshape(*weight.shape[:-1], -1)


def _quantize(blocks: NDArray[np.float32], bits: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    largest[largest == 0] = 1  # a block of zeros: any scale will do
    best_q = best_scale = least = None
    for stretch in STRETCHES[bits]:
        scale = largest * np.float32(stretch / (2 ** (bits - 1) - 1))
        q = np.clip(np.rint(blocks / scale), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        error = np.square(q * scale - blocks).sum(axis=-1, keepdims=True)
        if least is None:
            best_q, best_scale, least = q, scale, error
        else:
            better = error < least
            best_q, best_scale = np.where(better, q, best_q), np.where(better, scale, best_scale)
            least = np.minimum(error, least)
    assert best_q is not None
    assert best_scale is not None
    return best_q.astype(np.int8), best_scale[..., 0]


def dequantize_blocks(q: NDArray[np.int8], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """scale · q, (..., N, blocks, block) -> (..., N, K)."""
    return (q * scales[..., None]).reshape(*q.shape[:-2], -1)


def pack_unsigned(q: NDArray[np.int8], bits: int) -> NDArray[np.uint8]:
    """As ONNX Runtime stores it: plus 2^(bits-1) to be unsigned; 4-bit numbers two to a byte."""
    return pack_pairs(q) if bits == 4 else (q.astype(np.int16) + 128).astype(np.uint8)


def pack_pairs(q: NDArray[np.int8]) -> NDArray[np.uint8]:
    """4-bit numbers (…, n) plus 8, two to a byte (…, ceil(n / 2)), the first one low."""
    unsigned: NDArray[np.uint8] = (q + np.int8(8)).astype(np.uint8)
    if unsigned.shape[-1] % 2:
        unsigned = np.pad(unsigned, [*[(0, 0)] * (unsigned.ndim - 1), (0, 1)])
    return unsigned[..., 0::2] + unsigned[..., 1::2] * np.uint8(16)

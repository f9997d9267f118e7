"""Every quantization that GGUF files are read from: bit for bit what the format's definition says."""

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

from export.formats.gguf import READABLE, GgufTensors

Q = gguf.GGMLQuantizationType
Block = bytes
F = np.float32


def half(block: Block, offset: int) -> np.float32:
    return F(np.frombuffer(block, "<f2", 1, offset)[0])


def scale_and_min(index: int, packed: Block) -> tuple[int, int]:
    """Six bits each of scale and minimum of the eight groups of Q4_K and Q5_K, from twelve bytes."""
    if index < 4:
        return packed[index] & 63, packed[index + 4] & 63
    scale = (packed[index + 4] & 15) | (packed[index - 4] >> 6 << 4)
    return scale, (packed[index + 4] >> 4) | (packed[index] >> 6 << 4)


def q2_k(block: Block) -> list[np.float32]:
    scales, codes, d, dmin = block[:16], block[16:80], half(block, 80), half(block, 82)
    out = []
    for i in range(256):
        part, place = divmod(i, 128)
        code = codes[32 * part + place % 32] >> (2 * (place // 32)) & 3
        scale = scales[i // 16]
        out.append(d * F(scale & 15) * F(code) - dmin * F(scale >> 4))
    return out


def q3_k(block: Block) -> list[np.float32]:
    high, codes, packed, d = block[:32], block[32:96], block[96:108], half(block, 108)
    out = []
    for i in range(256):
        part, place = divmod(i, 128)
        code = codes[32 * part + place % 32] >> (2 * (place // 32)) & 3
        code -= 0 if high[place % 32] >> (4 * part + place // 32) & 1 else 4
        group = i // 16
        scale = (packed[group % 8] >> (4 * (group // 8)) & 15) | (
            (packed[8 + group % 4] >> (2 * (group // 4)) & 3) << 4
        )
        out.append(d * F(scale - 32) * F(code))
    return out


def q4_k(block: Block) -> list[np.float32]:
    d, dmin, packed, codes = half(block, 0), half(block, 2), block[4:16], block[16:]
    out = []
    for i in range(256):
        group, place = divmod(i, 32)
        scale, least = scale_and_min(group, packed)
        code = codes[32 * (group // 2) + place] >> (4 * (group % 2)) & 15
        out.append(d * F(scale) * F(code) - dmin * F(least))
    return out


def q5_k(block: Block) -> list[np.float32]:
    d, dmin, packed, high, codes = half(block, 0), half(block, 2), block[4:16], block[16:48], block[48:]
    out = []
    for i in range(256):
        group, place = divmod(i, 32)
        scale, least = scale_and_min(group, packed)
        code = codes[32 * (group // 2) + place] >> (4 * (group % 2)) & 15
        code |= (high[place] >> group & 1) << 4
        out.append(d * F(scale) * F(code) - dmin * F(least))
    return out


def q6_k(block: Block) -> list[np.float32]:
    low, high, scales, d = block[:128], block[128:192], struct.unpack("16b", block[192:208]), half(block, 208)
    out = []
    for i in range(256):
        part, place = divmod(i, 128)
        quarter, place = divmod(place, 32)
        code = low[64 * part + 32 * (quarter % 2) + place] >> (4 * (quarter // 2)) & 15
        code |= (high[32 * part + place] >> (2 * quarter) & 3) << 4
        out.append(d * F(scales[i // 16]) * F(code - 32))
    return out


BY_HAND: dict[str, tuple[Callable[[Block], list[np.float32]], tuple[int, ...]]] = {
    "Q2_K": (q2_k, (80, 82)),
    "Q3_K": (q3_k, (108,)),
    "Q4_K": (q4_k, (0, 2)),
    "Q5_K": (q5_k, (0, 2)),
    "Q6_K": (q6_k, (208,)),
}


def random_blocks(kind: str, count: int) -> np.ndarray:
    """Any bytes are a block, but for the scales, which are halves: small ones, so that none is infinite."""
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (count, gguf.GGML_QUANT_SIZES[Q[kind]][1]), np.uint8)
    for offset in BY_HAND[kind][1]:
        scales = rng.uniform(-2, 2, count).astype("<f2")
        blocks[:, offset : offset + 2] = scales.view(np.uint8).reshape(count, 2)
    return blocks


def stored_and_read(packed: np.ndarray, kind: str, path: Path) -> np.ndarray:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("x", packed, raw_dtype=Q[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    values: np.ndarray = GgufTensors(gguf.GGUFReader(path)).read("x").numpy()
    return values


@pytest.mark.parametrize("kind", sorted(BY_HAND))
def test_k_quants_are_what_their_definition_says(kind: str, tmp_path: Path) -> None:
    blocks = random_blocks(kind, 12)
    read = stored_and_read(blocks.reshape(4, -1), kind, tmp_path / "k.gguf")
    by_hand = np.array([BY_HAND[kind][0](block.tobytes()) for block in blocks], F)
    np.testing.assert_array_equal(read, by_hand.reshape(4, -1))
    np.testing.assert_array_equal(read, gguf.dequantize(blocks.reshape(4, -1), Q[kind]))


@pytest.mark.parametrize("kind", sorted(set(READABLE) - set(BY_HAND)))
def test_what_the_package_quantizes_is_read_as_it_reads_it(kind: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).standard_normal((6, 64)).astype(F)
    packed = gguf.quantize(values, Q[kind])
    expected = gguf.dequantize(packed, Q[kind])
    np.testing.assert_array_equal(stored_and_read(packed, kind, tmp_path / "q.gguf"), expected)
    assert np.abs(expected - values).max() < 0.5  # a quantization of these values and not of others

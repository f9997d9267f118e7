"""LLaMA files of the formats before GGUF, written value by value from their description."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

MAGICS = {"ggml": 0x67676D6C, "ggmf": 0x67676D66, "ggjt": 0x67676A74, "ggla": 0x67676C61, "ggsn": 0x6767736E}
TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 8}
WIDTH, HEADS, LAYERS, MULTIPLE, D_FF, VOCABULARY = 64, 2, 2, 32, 192, 300


def pieces() -> list[bytes]:
    """As the converters wrote them: a byte's token is the byte, a space is a space."""
    words = [b" t", b"he", b" the", b" c", b"at", b" cat"]
    letters = [bytes([letter]) for letter in b" abcdefghijklmnopqrstuvwxyz.,!?"]
    tokens = ["  \u2047 ".encode(), b"", b"", *(bytes([byte]) for byte in range(256)), *words, *letters]
    return tokens + [f"x{index}".encode() for index in range(VOCABULARY - len(tokens))]


def pack_block(values: np.ndarray, kind: str, number: int) -> tuple[bytes, list[float]]:
    """32 values as a block of the version, and what the block says they are."""
    d = np.float32(np.float16(np.abs(values).max() / 7))
    scale = struct.pack("<e" if number == 3 else "<f", d)
    if kind == "Q8_0":
        codes = [round(float(v / d)) for v in values]
        return scale + struct.pack("<32b", *codes), [float(np.float32(d) * np.float32(c)) for c in codes]
    low = np.float32(np.float16(values.min())) if kind == "Q4_1" else np.float32(0)
    if kind == "Q4_1":
        d = np.float32(np.float16((values.max() - low) / 15))
        form = "<2e" if number == 3 else "<2f"
        scale = struct.pack(form, d, low)
        codes = [min(15, max(0, round(float((v - low) / d)))) for v in values]
        meant = [float(d * np.float32(c) + low) for c in codes]
    else:
        codes = [min(15, round(float(v / d)) + 8) for v in values]
        meant = [float(d * np.float32(c - 8)) for c in codes]
    if number == 1:  # neighbours share a byte
        packed = bytes(codes[2 * j] | codes[2 * j + 1] << 4 for j in range(16))
    else:  # a weight shares its byte with the one 16 places on
        packed = bytes(codes[j] | codes[j + 16] << 4 for j in range(16))
    return scale + packed, meant


@dataclass
class TinyGgml:
    """What goes into the file; `meant` is what the stored tensors say once it is written."""

    magic: str = "ggjt"
    number: int = 3
    kind: str = "F32"
    vocabulary: list[bytes] = field(default_factory=pieces)
    header: dict[str, int] = field(default_factory=dict)
    meant: dict[str, np.ndarray] = field(default_factory=dict)

    def bytes(self, tensors: Mapping[str, np.ndarray]) -> bytes:
        """The file with these tensors; matrices are stored as `kind`, vectors in float32."""
        out = bytearray(struct.pack("<I", MAGICS[self.magic]))
        if self.magic != "ggml":
            out += struct.pack("<i", self.number)
        sizes = {"vocab": len(self.vocabulary), "embd": WIDTH, "mult": MULTIPLE, "head": HEADS}
        sizes |= {"layer": LAYERS, "rot": WIDTH // HEADS, "ftype": 0} | self.header
        out += struct.pack("<7i", *sizes.values())
        for index, piece in enumerate(self.vocabulary):
            out += struct.pack("<i", len(piece)) + piece
            if self.magic != "ggml":
                out += struct.pack("<f", -float(index))
        for name, values in tensors.items():
            kind = self.kind if values.ndim == 2 else "F32"
            out += struct.pack("<3i", values.ndim, len(name), TYPES[kind])
            out += struct.pack(f"<{values.ndim}i", *reversed(values.shape)) + name.encode()
            if self.magic == "ggjt":
                out += bytes(-len(out) % 32)
            out += self._data(name, values, kind)
        return bytes(out)

    def _data(self, name: str, values: np.ndarray, kind: str) -> bytes:
        if kind in ("F32", "F16"):
            stored = values.astype("<f4" if kind == "F32" else "<f2")
            self.meant[name] = stored.astype(np.float32)
            return stored.tobytes()
        number = 1 if self.magic != "ggjt" else self.number
        blocks = [pack_block(block, kind, number) for block in values.reshape(-1, 32)]
        meant = np.array([value for _, block in blocks for value in block], np.float32)
        self.meant[name] = meant.reshape(values.shape)
        return b"".join(packed for packed, _ in blocks)

    def write(self, path: Path, tensors: Mapping[str, np.ndarray]) -> Path:
        """Write the file; returns its path."""
        path.write_bytes(self.bytes(tensors))
        return path

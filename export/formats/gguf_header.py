"""Whether a GGUF file's header is sound: the `gguf` package, which walks it next, trusts every length."""

import mmap
import struct
from collections import Counter
from pathlib import Path

import gguf

from export.errors import ExportError

MAX_ENTRIES = 1 << 20  # of keys, and of tensors
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
STRING, ARRAY = gguf.GGUFValueType.STRING, gguf.GGUFValueType.ARRAY
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes by GGUFValueType
TYPES = {int(kind): size for kind, size in gguf.GGML_QUANT_SIZES.items()}


def require_sound_header(path: Path) -> None:
    """ExportError unless every length, count and offset of the header lies within the file."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        _Header(data).check()


class _Header:
    """Walks the header; `place` is the next byte to read."""

    def __init__(self, data: mmap.mmap) -> None:
        self.data, self.place = data, 8  # behind magic and version
        self.alignment = DEFAULT_ALIGNMENT

    def check(self) -> None:
        num_tensors, num_keys = self.number("Q"), self.number("Q")
        for what, count in (("tensors", num_tensors), ("keys", num_keys)):
            if count > MAX_ENTRIES:
                raise ExportError(f"it claims {count} {what}; at most {MAX_ENTRIES} are read")
        keys = [self.key() for _ in range(num_keys)]
        self.refuse_twice("key", keys)
        tensors = [self.tensor() for _ in range(num_tensors)]
        self.refuse_twice("tensor", [name for name, _, _ in tensors])
        start = -(-self.place // self.alignment) * self.alignment
        end = 0
        for name, offset, size in sorted(tensors, key=lambda tensor: tensor[1]):
            if offset < end:
                raise ExportError(f"{name} overlaps the tensor before it")
            end = offset + size
            if start + end > len(self.data):
                raise ExportError(f"it is cut off within {name}")

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise ExportError(f"it is cut off, or claims {count} bytes where it has none")
        self.place += count
        return self.data[self.place - count : self.place]

    def number(self, form: str) -> int:
        value: int = struct.unpack(f"<{form}", self.take(struct.calcsize(form)))[0]
        return value

    def string(self) -> str:
        return self.take(self.number("Q")).decode(errors="replace")

    def key(self) -> str:
        name, kind = self.string(), self.number("I")
        if name == "general.alignment" and kind == gguf.GGUFValueType.UINT32:
            self.alignment = self.number("I")
            if self.alignment.bit_count() != 1 or self.alignment > 1 << 20:
                raise ExportError(f"general.alignment is {self.alignment}; a power of two is needed")
        else:
            self.skip_value(name, kind)
        return name

    def skip_value(self, name: str, kind: int) -> None:
        if kind == STRING:
            self.string()
        elif kind == ARRAY:
            self.skip_array(name)
        elif kind in SIZES:
            self.take(SIZES[kind])
        else:
            raise ExportError(f"{name} has a value of the unknown type {kind}")

    def skip_array(self, name: str) -> None:
        kind, count = self.number("I"), self.number("Q")
        if kind == STRING:
            # Each takes eight bytes at least, so that the count is bounded by the file.
            if count > len(self.data) // 8:
                raise ExportError(f"{name} claims {count} strings, more than the file has room for")
            for _ in range(count):
                self.string()
        elif kind in SIZES:
            self.take(SIZES[kind] * count)
        else:
            raise ExportError(f"{name} is an array of the type {kind}, which is not read")

    def tensor(self) -> tuple[str, int, int]:
        """(name, offset, bytes)."""
        name, dimensions = self.string(), self.number("I")
        if not 1 <= dimensions <= MAX_DIMENSIONS:
            raise ExportError(f"{name} has {dimensions} dimensions; 1 to {MAX_DIMENSIONS} are possible")
        elements = 1
        sizes = [self.number("Q") for _ in range(dimensions)]
        for size in sizes:
            elements *= size
        kind, offset = self.number("I"), self.number("Q")
        if kind not in TYPES:
            raise ExportError(f"{name} is stored as the unknown type {kind}")
        block, nbytes = TYPES[kind]
        if not elements or sizes[0] % block:
            raise ExportError(f"{name} has the shape {sizes}, which blocks of {block} do not fill")
        if offset % self.alignment:
            raise ExportError(f"{name} lies at {offset}, which is no multiple of {self.alignment}")
        return name, offset, elements // block * nbytes

    def refuse_twice(self, what: str, names: list[str]) -> None:
        name, count = max(Counter(names).items(), key=lambda item: item[1], default=("", 0))
        if count > 1:
            raise ExportError(f"the {what} {name[:80]!r} is there {count} times")

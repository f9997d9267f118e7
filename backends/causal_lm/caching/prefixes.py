"""Prefixes of token lists: their digests, and which of many lists begins a prompt."""

from collections import Counter
from collections.abc import Hashable
from hashlib import blake2b
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

# Tokens. ONNX Runtime's kernels work in blocks of 32 or a multiple (scheduler.py).
BLOCK = 32

_DIGEST_BYTES = 32  # as many as it takes for equal digests to mean equal tokens

K = TypeVar("K", bound=Hashable)


class Prefixes:
    """Digests of every prefix of `tokens` [N]: a chain of hashes, each block's going on from the last."""

    def __init__(self, tokens: NDArray[np.integer[Any]]) -> None:
        self.tokens = tokens.astype("<i4")
        self._data = memoryview(self.tokens.tobytes())
        self._hashes = [blake2b(digest_size=_DIGEST_BYTES)]
        for block in range(len(self) // BLOCK):
            grown = self._hashes[-1].copy()
            grown.update(self._bytes(block * BLOCK, (block + 1) * BLOCK))
            self._hashes.append(grown)

    def __len__(self) -> int:
        return len(self.tokens)

    def digest(self, length: int) -> bytes:
        """The digest of the first `length` tokens; equal ones mean equal tokens."""
        grown = self._hashes[length // BLOCK].copy()
        grown.update(self._bytes(length // BLOCK * BLOCK, length))
        return grown.digest()

    def _bytes(self, start: int, stop: int) -> memoryview:
        size = self.tokens.itemsize
        return self._data[start * size : stop * size]


class PrefixIndex(Generic[K]):
    """Finds the longest of many token lists that begins a prompt; knows them by length and digest."""

    def __init__(self) -> None:
        self._keys: dict[bytes, list[K]] = {}
        self._lengths: Counter[int] = Counter()

    def add(self, key: K, length: int, digest: bytes) -> None:
        """Know one more list; several keys may have equal ones."""
        self._keys.setdefault(digest, []).append(key)
        self._lengths[length] += 1

    def remove(self, key: K, length: int, digest: bytes) -> None:
        """Forget what `add` was told."""
        self._keys[digest].remove(key)
        if not self._keys[digest]:
            del self._keys[digest]
        self._lengths[length] -= 1
        if not self._lengths[length]:
            del self._lengths[length]

    def longest(self, prefixes: Prefixes, limit: int) -> tuple[K, int] | None:
        """The key and length of the longest list of at most `limit` tokens that begins these tokens."""
        for length in sorted((length for length in self._lengths if length <= limit), reverse=True):
            keys = self._keys.get(prefixes.digest(length))
            if keys:
                return keys[-1], length
        return None

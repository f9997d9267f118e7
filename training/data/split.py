"""Which documents or conversations are held out: a hash of their text says so, whatever their order."""

import zlib
from collections.abc import Callable, Sequence
from typing import TypeVar

from training.data.choice import DataError

HELD_OUT_IN = 10  # one of ten

T = TypeVar("T")


def split(items: Sequence[T], text_of: Callable[[T], str], *, name: str) -> tuple[list[T], list[T]]:
    """The items to train on, in their order, and those held out, in the order of their hashes.

    Equal texts fall on the same side. If the hash holds out none, or all, the least one alone is held out.
    Raises DataError if fewer than two texts differ; `name` says where they are from.
    """
    hashed = [(zlib.crc32(text_of(item).encode()), item) for item in items]
    numbers = {number for number, _ in hashed}
    if len(numbers) < 2:
        raise DataError(
            f"{name}: {len(items)} found, {len(numbers)} of them different; at least 2 are needed, "
            "one to train on and one to hold out"
        )
    held = {number for number in numbers if number % HELD_OUT_IN == 0}
    if not held or held == numbers:
        held = {min(numbers)}
    kept = [item for number, item in hashed if number not in held]
    held_out = sorted((pair for pair in hashed if pair[0] in held), key=lambda pair: pair[0])
    return kept, [item for _, item in held_out]

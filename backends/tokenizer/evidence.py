"""Exchangeable blocks of a prompt in several orders (docs/adr/006)."""

import math
import secrets
from collections.abc import Iterator, Sequence

import numpy as np

from backends.tokenizer.errors import PromptError
from backends.tokenizer.json_input import MAX_BYTES, text_from_bytes

MARKER = "{evidence}"
SEPARATOR = "\n"
MAX_BLOCKS = 64
MAX_ORDERS = 64


def orders_of(blocks: Sequence[bytes] | None, count: int, seed: int | None) -> list[str]:
    """The evidence in `count` different orders, each as one text: as given, then by lot; [] without any.

    Equal seeds draw equal orders; None is a seed drawn at random. Raises PromptError.
    """
    if blocks is None:
        if count != 1:
            raise PromptError(
                "num_permutations", f"{count} was given without evidence, which is to be permuted"
            )
        return []
    if not 1 <= len(blocks) <= MAX_BLOCKS:
        raise PromptError("evidence", f"{len(blocks)} blocks; 1 to {MAX_BLOCKS} are allowed")
    texts = [text_from_bytes(block, f"evidence[{index}]") for index, block in enumerate(blocks)]
    possible = min(math.factorial(len(texts)), MAX_ORDERS)
    if not 1 <= count <= possible:
        raise PromptError(
            "num_permutations", f"{count} was given, allowed is 1 to {possible} with {len(texts)} blocks"
        )
    seed = secrets.randbits(64) if seed is None else seed
    return [SEPARATOR.join(texts[block] for block in order) for order in draw_orders(len(texts), count, seed)]


def draw_orders(num_blocks: int, count: int, seed: int) -> list[tuple[int, ...]]:
    """`count` different permutations of 0 … num_blocks - 1, the first of which is the identity."""
    generator = np.random.Generator(np.random.Philox(key=seed))
    orders = dict.fromkeys([tuple(range(num_blocks))])
    while len(orders) < count:
        orders[tuple(generator.permutation(num_blocks).tolist())] = None
    return list(orders)


def with_evidence(texts: Sequence[str], orders: Sequence[str]) -> Iterator[list[str]]:
    """`texts` with each order at the one marker that stands in them; as they are without orders.

    Raises PromptError.
    """
    if not orders:
        yield list(texts)
        return
    markers = sum(text.count(MARKER) for text in texts)
    if markers != 1:
        raise PromptError(
            "evidence", f"its place {MARKER} stands {markers} times in the prompt; once is needed"
        )
    size = len(orders) * (sum(map(len, texts)) + len(orders[0]))
    if size > MAX_BYTES:
        raise PromptError(
            "num_permutations",
            f"{len(orders)} orders make {size} characters; at most {MAX_BYTES} are allowed",
        )
    for order in orders:
        yield [text.replace(MARKER, order) for text in texts]

"""The prefix cache: what is found is what was kept for these very tokens, within the budget."""

import numpy as np
import pytest

from backends.causal_lm.caching.prefix_cache import CachedPrefix, PrefixCache
from backends.causal_lm.caching.prefixes import BLOCK, Prefixes
from backends.causal_lm.runtime.state import Bytes

SIZE = 100  # bytes of a block and of a snapshot
TOKENS = np.arange(6 * BLOCK)


def state(value: int) -> Bytes:
    return np.full(SIZE, value, np.uint8)


def prompt(*blocks: int) -> Prefixes:
    """Blocks of tokens, the same number for the same tokens."""
    return Prefixes(np.concatenate([np.full(BLOCK, block) for block in blocks]))


def keep(cache: PrefixCache, *blocks: int) -> None:
    """Keep a prompt's rows, which are the numbers of its blocks."""
    prefixes = prompt(*blocks)
    missing = cache.missing_blocks(prefixes, len(prefixes))
    cache.keep_blocks(prefixes, {number: state(blocks[number]) for number in missing})


def found(cache: PrefixCache, *blocks: int) -> list[int]:
    prefix = cache.longest(prompt(*blocks), len(blocks) * BLOCK)
    assert prefix.length == len(prefix.blocks) * BLOCK
    return [int(rows[0]) for rows in prefix.blocks]


def test_rows_are_found_as_far_as_the_tokens_are_the_same() -> None:
    cache = PrefixCache({"kv"}, 100 * SIZE)
    keep(cache, 1, 2, 3)
    assert found(cache, 1, 2, 3) == [1, 2, 3]
    assert found(cache, 1, 2, 4) == [1, 2]
    assert found(cache, 2, 2, 3) == []
    assert cache.longest(prompt(1, 2, 3), 3 * BLOCK - 1).length == 2 * BLOCK


def test_only_what_is_missing_needs_to_be_copied() -> None:
    cache = PrefixCache({"kv"}, 100 * SIZE)
    keep(cache, 1, 2)
    assert cache.missing_blocks(prompt(1, 2, 3, 4), 4 * BLOCK - 1) == [2]
    keep(cache, 1, 2, 3, 4)
    assert cache.nbytes == 4 * SIZE


def test_the_least_recently_used_goes_first_and_a_prefix_from_its_end() -> None:
    cache = PrefixCache({"kv"}, 5 * SIZE)
    keep(cache, 1, 2)
    keep(cache, 3, 4, 5)
    assert found(cache, 1, 2) == [1, 2]  # and by that used
    keep(cache, 6, 7)
    assert found(cache, 1, 2) == [1, 2]
    assert found(cache, 3, 4, 5) == [3]
    assert cache.nbytes == 5 * SIZE


def test_a_prompt_larger_than_the_budget_keeps_its_beginning() -> None:
    cache = PrefixCache({"kv"}, 3 * SIZE)
    for length in range(1, 7):
        keep(cache, *range(length))
        assert cache.nbytes <= 3 * SIZE
    assert found(cache, *range(6))[:2] == [0, 1]


def test_a_snapshot_is_found_at_its_own_length_only() -> None:
    cache = PrefixCache({"recurrent"}, 100 * SIZE)
    cache.keep_snapshot(Prefixes(TOKENS), 40, state(4))
    cache.keep_snapshot(Prefixes(TOKENS), 70, state(7))
    lengths = [cache.longest(Prefixes(TOKENS), limit).length for limit in (39, 40, 69, 70, 99)]
    assert lengths == [0, 40, 40, 70, 70]
    longest = cache.longest(Prefixes(TOKENS), 99)
    assert longest.snapshot is not None
    assert (longest.snapshot[0], longest.blocks) == (7, ())
    assert not cache.lacks_snapshot(Prefixes(TOKENS), 40)
    assert cache.lacks_snapshot(Prefixes(TOKENS), 41)
    assert cache.missing_blocks(Prefixes(TOKENS), 64) == []


def test_both_kinds_are_found_only_together() -> None:
    cache = PrefixCache({"kv", "recurrent"}, 100 * SIZE)
    prefixes = prompt(1, 2, 3)
    cache.keep_snapshot(prefixes, 2 * BLOCK, state(9))
    assert cache.longest(prefixes, 3 * BLOCK) == CachedPrefix()
    keep(cache, 1, 2, 3)
    longest = cache.longest(prefixes, 3 * BLOCK)
    assert (longest.length, len(longest.blocks)) == (2 * BLOCK, 2)
    assert longest.snapshot is not None
    assert longest.snapshot[0] == 9
    assert cache.longest(prefixes, 2 * BLOCK - 1) == CachedPrefix()


def test_old_snapshots_make_room() -> None:
    cache = PrefixCache({"recurrent"}, 2 * SIZE)
    for length in (10, 20, 30):
        cache.keep_snapshot(Prefixes(TOKENS), length, state(length))
    assert [cache.longest(Prefixes(TOKENS), limit).length for limit in (10, 20, 99)] == [0, 20, 30]


@pytest.mark.parametrize("kinds", [{"kv"}, {"recurrent"}, {"kv", "recurrent"}, set()])
def test_a_cache_without_room_keeps_nothing(kinds: set[str]) -> None:
    cache = PrefixCache(kinds, SIZE - 1)
    keep(cache, 1, 2)
    cache.keep_snapshot(prompt(1, 2), BLOCK, state(1))
    assert (cache.longest(prompt(1, 2), 2 * BLOCK), cache.nbytes) == (CachedPrefix(), 0)

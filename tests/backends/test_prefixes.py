"""Prefixes of token lists: equal digests for equal tokens, the longest list that begins a prompt."""

import numpy as np
import pytest

from backends.causal_lm.caching.prefixes import BLOCK, Prefixes, PrefixIndex

TOKENS = np.arange(3 * BLOCK + 5) % 50


@pytest.mark.parametrize("length", [0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, 3 * BLOCK + 5])
def test_a_digest_follows_from_the_tokens_up_to_there_alone(length: int) -> None:
    other = np.concatenate([TOKENS[:length], [7] * 40])
    assert Prefixes(TOKENS).digest(length) == Prefixes(other).digest(length)
    assert Prefixes(TOKENS).digest(length) == Prefixes(TOKENS[:length].astype(np.int32)).digest(length)


def test_one_other_token_or_one_more_changes_every_digest_from_there() -> None:
    whole = Prefixes(TOKENS)
    for changed in (0, BLOCK - 1, BLOCK, len(TOKENS) - 1):
        other = TOKENS.copy()
        other[changed] += 1
        differing = [n for n in range(len(TOKENS) + 1) if whole.digest(n) != Prefixes(other).digest(n)]
        assert differing == list(range(changed + 1, len(TOKENS) + 1))
    assert len({whole.digest(length) for length in range(len(TOKENS) + 1)}) == len(TOKENS) + 1


def indexed(*lengths: int) -> PrefixIndex[int]:
    index: PrefixIndex[int] = PrefixIndex()
    for length in lengths:
        index.add(length, length, Prefixes(TOKENS).digest(length))
    return index


def test_the_longest_list_within_the_limit_is_found() -> None:
    index = indexed(3, 40, 64)
    found = [index.longest(Prefixes(TOKENS), limit) for limit in (2, 3, 39, 40, 63, 64, 99)]
    assert found == [None, (3, 3), (3, 3), (40, 40), (40, 40), (64, 64), (64, 64)]


def test_a_list_with_another_token_is_not_found() -> None:
    other = TOKENS.copy()
    other[39] += 1
    assert indexed(3, 40, 64).longest(Prefixes(other), 99) == (3, 3)


def test_what_was_removed_is_not_found_and_its_equal_still_is() -> None:
    index, digest = indexed(40), Prefixes(TOKENS).digest(40)
    index.add(7, 40, digest)
    index.remove(7, 40, digest)
    assert index.longest(Prefixes(TOKENS), 99) == (40, 40)
    index.remove(40, 40, digest)
    assert index.longest(Prefixes(TOKENS), 99) is None

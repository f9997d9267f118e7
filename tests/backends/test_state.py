"""Rows of the state pools keep what they hold."""

import numpy as np
import psutil
import pytest

from backends.causal_lm.manifest import State
from backends.causal_lm.runtime.state import StatePools, bytes_of_states

STATES = (
    State("kv", "past.0", "present.0", (2, 8, 3), "float32"),
    State("recurrent", "past.1", "present.1", (2, 3, 5), "float16"),
)


def filled() -> StatePools:
    pools = StatePools(STATES, 4)
    for pool in pools.pools:
        pool[...] = np.arange(pool.size).reshape(pool.shape) % 97
    return pools


def test_pools_have_a_row_per_slot_in_the_states_dtype() -> None:
    pools = StatePools(STATES, 4)
    assert [(pool.shape, pool.dtype) for pool in pools.pools] == [
        ((4, 2, 8, 3), np.float32),
        ((4, 2, 3, 5), np.float16),
    ]


def test_a_long_context_takes_memory_only_where_it_is_written() -> None:
    resident = psutil.Process().memory_info().rss
    pools = StatePools([State("kv", "past.0", "present.0", (4, 65536, 64), "float32")] * 4, 8)  # 2 GB
    for pool in pools.pools:
        pool[:, :, :10] = 1.0
    assert psutil.Process().memory_info().rss - resident < 50e6


def test_a_move_copies_the_valid_positions_and_the_whole_recurrent_state() -> None:
    pools, before = filled(), filled()
    pools.move(3, 1, 5)
    kv, recurrent = pools.pools
    assert np.array_equal(kv[1, :, :5], before.pools[0][3, :, :5])
    assert np.array_equal(kv[1, :, 5:], before.pools[0][1, :, 5:])
    assert np.array_equal(recurrent[1], before.pools[1][3])
    for row in (0, 2, 3):
        assert all(np.array_equal(a[row], b[row]) for a, b in zip(pools.pools, before.pools, strict=True))


def test_a_reset_zeroes_the_recurrent_state_of_its_row_only() -> None:
    pools, before = filled(), filled()
    pools.reset(2)
    assert not pools.pools[1][2].any()
    assert np.array_equal(pools.pools[1][[0, 1, 3]], before.pools[1][[0, 1, 3]])
    assert np.array_equal(pools.pools[0], before.pools[0])


@pytest.mark.parametrize("kinds", [("kv",), ("recurrent",), ("kv", "recurrent")])
def test_a_saved_state_comes_back_in_another_row_to_the_bit(kinds: tuple[str, ...]) -> None:
    pools, before = filled(), filled()
    saved = pools.save(3, kinds, 2, 7)
    assert saved.nbytes == sum({"kv": 2 * 5 * 3 * 4, "recurrent": 2 * 3 * 5 * 2}[kind] for kind in kinds)
    pools.load(1, kinds, 2, 7, saved)
    for state, pool, old in zip(pools.states, pools.pools, before.pools, strict=True):
        expected = old.copy()
        if state.kind in kinds:
            span = np.s_[:, 2:7] if state.kind == "kv" else np.s_[:]
            expected[1][span] = old[3][span]
        assert np.array_equal(pool, expected)


def test_a_saved_state_does_not_change_with_its_row() -> None:
    pools = filled()
    saved = pools.save(3, ("kv", "recurrent"), 0, 8)
    kept = saved.copy()
    pools.reset(3)
    pools.pools[0][3] = 5
    assert np.array_equal(saved, kept)


def test_a_saved_state_of_another_size_is_refused() -> None:
    pools, before = filled(), filled()
    saved = pools.save(3, ("kv", "recurrent"), 0, 8)
    for wrong in (saved[:-4], np.append(saved, saved[:4])):
        with pytest.raises(ValueError, match=r"180 are needed|252 are needed"):
            pools.load(1, ("kv", "recurrent"), 0, 8, wrong)
    assert all(np.array_equal(a, b) for a, b in zip(pools.pools, before.pools, strict=True))


def test_a_sequences_bytes_are_its_tokens_in_caches_and_its_recurrent_states_once() -> None:
    states = [
        State("kv", "past.0", "present.0", (3, 8192, 64), "float32"),
        State("kv", "past.1", "present.1", (3, 8192, 64), "float16"),
        State("recurrent", "past.2", "present.2", (4, 16, 32), "float32"),
    ]
    assert bytes_of_states(states, 100) == 100 * 3 * 64 * (4 + 2) + 4 * 16 * 32 * 4
    assert bytes_of_states(states, 0) == 4 * 16 * 32 * 4

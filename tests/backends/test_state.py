"""Rows of the state pools keep what they hold."""

import numpy as np
import psutil

from backends.causal_lm.manifest import State
from backends.causal_lm.state import StatePools

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

"""Four-bit grids: found again where weights came on one, nearest where they didn't."""

import numpy as np
import pytest
import torch

from export.blockwise import dequantize_blocks, quantize_blocks
from export.grids import found_grid, grid_of, nearest_grid

N, BLOCKS, BLOCK = 24, 3, 32


def q4_1(seed: int = 0, low: float = -15, high: float = 0) -> np.ndarray:
    """Weights as GGUF's Q4_1 has them: d · q + m, d and m in float16, m of `low` to `high` steps."""
    random = np.random.default_rng(seed)
    d = random.uniform(0.01, 0.1, (N, BLOCKS, 1)).astype(np.float16)
    m = (d * random.uniform(low, high, d.shape)).astype(np.float16)
    q = random.integers(0, 16, (N, BLOCKS, BLOCK))
    return (d.astype(np.float32) * q + m.astype(np.float32)).reshape(N, -1)


def test_the_grid_of_q4_1_is_found_with_offsets_of_at_most_half_a_step():
    weight = q4_1()
    grid = found_grid(weight, BLOCK)
    assert grid is not None
    np.testing.assert_allclose(grid.values(), weight, atol=1e-6)  # float32's rounding of weights below 2
    assert grid.has_offsets
    assert np.all(np.abs(grid.offsets) <= 0.5001 * grid.scales)
    assert np.abs(grid.offsets / grid.scales).mean() > 0.2  # a zero point alone would not do


def test_blocks_that_use_few_levels_and_blocks_of_one_value_are_on_a_grid():
    weight = np.zeros((5, 32), np.float32)
    weight[1] = 0.3
    weight[2] = -0.3
    weight[3] = np.where(np.arange(32) % 2, 0.25, -0.75)
    weight[4] = 0.1 * (np.arange(32) % 8) - 0.33
    grid = found_grid(weight, 32)
    assert grid is not None
    np.testing.assert_allclose(grid.values(), weight, atol=1e-6)


def test_whole_numbers_of_steps_need_no_offsets():
    weight = (np.random.default_rng(0).integers(-8, 8, (N, 96)) * 0.125).astype(np.float32)
    grid = found_grid(weight, BLOCK)
    assert grid is not None
    assert not grid.has_offsets
    np.testing.assert_array_equal(grid.values(), weight)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_grid_is_found_in_weights_that_were_stored_in_half(dtype):
    weight = q4_1(low=-10, high=-5)
    stored = torch.from_numpy(weight).to(dtype).float().numpy()
    grid = found_grid(stored, BLOCK)
    assert grid is not None
    steps = np.repeat(grid.scales, BLOCK, axis=1)
    assert np.all(np.abs(grid.values() - weight) <= steps / 8)  # twice the slack


@pytest.mark.parametrize("spoil", ["one weight by a third of a step", "all of a block far above zero"])
def test_a_single_block_off_the_grid_is_enough_to_find_none(spoil):
    weight = q4_1()
    if spoil.startswith("one"):
        weight[N - 1, -1] += np.ptp(weight[N - 1, -BLOCK:]) / 45
    else:
        weight[N - 1, -BLOCK:] += 40 * np.ptp(weight[N - 1, -BLOCK:])
    assert found_grid(weight, BLOCK) is None


def test_random_weights_are_on_no_grid_and_get_the_nearest():
    weight = np.random.default_rng(0).standard_normal((64, 128), np.float32)
    assert found_grid(weight, BLOCK) is None
    grid = grid_of(weight, BLOCK)
    assert not grid.has_offsets
    steps = np.repeat(grid.scales, BLOCK, axis=1)
    is_clipped = ((grid.q == -8) | (grid.q == 7)).reshape(64, -1)
    assert np.all(is_clipped | (np.abs(grid.values() - weight) <= 0.5001 * steps))
    symmetric = dequantize_blocks(*quantize_blocks(weight, bits=4, block_size=BLOCK))
    assert np.square(grid.values() - weight).sum() < 0.9 * np.square(symmetric - weight).sum()


def test_the_nearest_grid_has_the_least_error_of_what_is_tried():
    weight = np.random.default_rng(1).standard_normal((8, 32), np.float32)
    low, high = weight.min(axis=1), weight.max(axis=1)
    step = (high - low) / 15
    zero = np.rint(-low / step)
    rounded = (np.clip(np.rint(weight / step[:, None] + zero[:, None]), 0, 15) - zero[:, None]) * step[
        :, None
    ]
    plain = np.square(rounded - weight).sum(axis=1)
    assert np.all(np.square(nearest_grid(weight, 32).values() - weight).sum(axis=1) <= plain * (1 + 1e-5))


def test_rows_are_padded_to_whole_blocks_and_zeros_stay_zero():
    grid = nearest_grid(np.zeros((3, 40), np.float32), 32)
    assert grid.q.shape == (3, 2, 32)
    assert not grid.values().any()
    assert np.isfinite(grid.scales).all()


def test_offsets_are_weights_of_the_sums_of_blocks():
    weight, x = q4_1(), np.random.default_rng(3).standard_normal(BLOCKS * BLOCK)
    grid = found_grid(weight, BLOCK)
    assert grid is not None
    longer = grid.with_offsets_as_weights()
    sums = x.reshape(BLOCKS, BLOCK).sum(axis=1)
    y = longer.values()[:, : len(x) + BLOCKS] @ np.concatenate([x, sums])
    # An offset is rounded to a fourteenth of the largest of its row, at most half a step of the widest block.
    bound = grid.scales.max(axis=1) / 28 * np.abs(sums).sum()
    assert np.all(np.abs(y - weight @ x) <= 1.001 * bound)
    assert np.abs(y - weight @ x).max() < 0.3 * np.abs(grid.offsets @ sums).max()
    assert not longer.has_offsets

"""Four-bit grids with a zero point: the one that a matrix came on, or else the nearest.

Checkpoints that were in four bits before (GGUF's Q4_0, Q4_1, Q4_K) lie on sixteen levels a block, the lowest
of which may be any number. A zero point is a whole number of steps; the rest of the level is an offset.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from export.blockwise import ROWS_AT_ONCE, quantize_blocks

LEVELS = 16
LOWEST = -8  # of the signed numbers that stand for the levels
SLACK = 1 / 16  # of a step: what float16 and bfloat16 leave of a grid, and chance never does with 32 weights
# Of the step that just spans a block's weights: clipping often costs less than a coarser grid.
STRETCHES = (1.0, 0.95, 0.9, 0.85, 0.8)

Floats = NDArray[np.float32]
Integers = NDArray[np.int8]


@dataclass(frozen=True)
class Grid:
    """w ≈ scale · (q - zero) + offset for a matrix in blocks along K.

    `q` (N, blocks, block) and `zeros` (N, blocks) are in [-8, 7]; `scales` and `offsets` are (N, blocks).
    """

    q: Integers
    scales: Floats
    zeros: Integers
    offsets: Floats

    @property
    def has_offsets(self) -> bool:
        """Whether an offset is more than rounding leaves."""
        return bool((np.abs(self.offsets) > SLACK * self.scales).any())

    def values(self) -> Floats:
        """The matrix (N, blocks * block) that the grid stands for."""
        steps = self.q.astype(np.float32) - self.zeros[..., None]
        values: Floats = steps * self.scales[..., None] + self.offsets[..., None]
        return values.reshape(len(values), -1)

    def with_offsets_as_weights(self) -> Self:
        """For an input that the sums of its blocks follow: the offsets are their weights, in 4 bits too."""
        q, scales = quantize_blocks(self.offsets, bits=4, block_size=self.q.shape[-1])
        return type(self)(
            q=np.concatenate([self.q, q], axis=1),
            scales=np.concatenate([self.scales, scales], axis=1),
            zeros=np.concatenate([self.zeros, np.zeros(scales.shape, np.int8)], axis=1),
            offsets=np.zeros((len(q), self.q.shape[1] + q.shape[1]), np.float32),
        )


def grid_of(weight: NDArray[np.floating], block_size: int) -> Grid:
    """The grid that `weight` (N, K) lies on, or else the nearest one."""
    return found_grid(weight, block_size) or nearest_grid(weight, block_size)


def found_grid(weight: NDArray[np.floating], block_size: int) -> Grid | None:
    """The grid on which all of `weight` (N, K) lies, offsets and all; None if there is none."""
    return _by_parts(weight, block_size, _levels_of)


def nearest_grid(weight: NDArray[np.floating], block_size: int) -> Grid:
    """Without offsets: of each block the step and zero point with the least squared error.

    K is padded with zeros to whole blocks.
    """
    grid = _by_parts(weight, block_size, _nearest)
    assert grid is not None
    return grid


def _by_parts(
    weight: NDArray[np.floating], block_size: int, fit: Callable[[Floats], Grid | None]
) -> Grid | None:
    """`fit` on so many rows at a time that temporary copies stay small; None as soon as it finds none."""
    padding = -weight.shape[1] % block_size
    parts = []
    for start in range(0, len(weight), ROWS_AT_ONCE):
        rows = np.pad(weight[start : start + ROWS_AT_ONCE].astype(np.float32), ((0, 0), (0, padding)))
        part = fit(rows.reshape(len(rows), -1, block_size))
        if part is None:
            return None
        parts.append(part)
    return _joined(parts)


def _joined(parts: Sequence[Grid]) -> Grid:
    return Grid(
        q=np.concatenate([part.q for part in parts]),
        scales=np.concatenate([part.scales for part in parts]),
        zeros=np.concatenate([part.zeros for part in parts]),
        offsets=np.concatenate([part.offsets for part in parts]),
    )


def _levels_of(blocks: Floats) -> Grid | None:
    """A block's range is 15 of its steps, or fewer if it doesn't use its outermost levels."""
    low, span = _range_of(blocks)
    scales = np.zeros_like(low)
    for steps in range(LEVELS - 1, 0, -1):
        left = np.nonzero(scales == 0)
        if not left[0].size:
            break
        heights = (blocks[left] - low[left][:, None]) * (steps / span[left][:, None])
        fits = (np.abs(heights - np.rint(heights)) <= SLACK).all(axis=-1)
        scales[left] = np.where(fits, span[left] / steps, 0)
    if not scales.all():
        return None
    lowest = np.rint(low / scales)  # in steps from zero
    zeros = np.clip(-lowest, 0, LEVELS - 1)
    q = np.rint((blocks - low[..., None]) / scales[..., None]) + (lowest + zeros)[..., None]
    if q.min() < 0 or q.max() >= LEVELS:
        return None  # all of a block's weights lie far to one side of zero
    return _grid(q, scales, zeros, low - lowest * scales)


def _range_of(blocks: Floats) -> tuple[Floats, Floats]:
    """The lowest weight of each block and how far the highest lies above it; of equal ones, zero counts."""
    low, high = blocks.min(axis=-1), blocks.max(axis=-1)
    is_flat = low == high
    low, high = np.where(is_flat, np.minimum(low, 0), low), np.where(is_flat, np.maximum(high, 0), high)
    span = high - low
    return low, np.where(span == 0, np.float32(1), span)


def _nearest(blocks: Floats) -> Grid:
    low, high = np.minimum(blocks.min(axis=-1), 0), np.maximum(blocks.max(axis=-1), 0)
    widest = np.where(high == low, np.float32(1), high - low) / np.float32(LEVELS - 1)
    best = Grid(
        q=np.empty(blocks.shape, np.int8),
        scales=np.empty_like(low),
        zeros=np.empty(low.shape, np.int8),
        offsets=np.zeros_like(low),
    )
    least = np.full_like(low, np.inf)
    for stretch in STRETCHES:
        scales = widest * np.float32(stretch)
        for shift in (-1, 0, 1):
            zeros = np.clip(np.rint(-low / scales) + shift, 0, LEVELS - 1)
            q = np.clip(np.rint(blocks / scales[..., None] + zeros[..., None]), 0, LEVELS - 1)
            errors = np.square((q - zeros[..., None]) * scales[..., None] - blocks).sum(axis=-1)
            better = errors < least
            best.q[better] = q[better] + LOWEST
            best.scales[better], best.zeros[better] = scales[better], zeros[better] + LOWEST
            least = np.minimum(errors, least)
    return best


def _grid(q: Floats, scales: Floats, zeros: Floats, offsets: Floats) -> Grid:
    """From levels that count from 0."""
    return Grid(
        q=(q + LOWEST).astype(np.int8),
        scales=scales.astype(np.float32),
        zeros=(zeros + LOWEST).astype(np.int8),
        offsets=offsets.astype(np.float32),
    )

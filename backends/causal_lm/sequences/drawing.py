"""Drawing a token: which of them top-k, top-p and min-p keep, and the one that a uniform number falls on."""

import math

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.requests.request import SamplingParameters

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
_BLOCK = 256
_GROUPS = 64
_STEP = 1 / 256  # of weights: from one floor to the next, as the likeliest tokens are looked for
_EDGE = 0.01  # of a weight's logarithm; what lies so near a bound is decided by the weight itself


def weights_of(row: Floats, peak: np.float32, temperature: float) -> Floats:
    """Weights of logits [n], that of `peak` 1, in proportion to their probabilities."""
    weights: Floats = row - peak
    weights *= np.float32(1 / temperature)
    np.exp(weights, out=weights)
    return weights


def truncated(row: Floats, peak: np.float32, wanted: SamplingParameters) -> tuple[Indices | None, Floats]:
    """What top-k, then top-p, then min-p keep of logits [V], the largest of which is `peak`.

    Returns tokens, ascending, and their weights; None stands for all tokens.
    """
    ids = _shortlist(row, peak, wanted)
    weights = weights_of(row if ids is None else row[ids], peak, wanted.temperature)
    if wanted.top_p < 1:
        kept = _nucleus(weights, wanted.top_p)
        ids, weights = kept if ids is None else ids[kept], weights[kept]
    if ids is not None and wanted.min_p > 0:
        above = weights >= wanted.min_p
        ids, weights = ids[above], weights[above]
    return ids, weights


def truncates(wanted: SamplingParameters) -> bool:
    """Whether any token may be left out."""
    return wanted.top_k > 0 or wanted.top_p < 1 or wanted.min_p > 0


def surely_kept(token: int, weights: Floats, wanted: SamplingParameters) -> bool:
    """Whether `token` would be kept however many of the other `weights` [V], of at most 1, became 0.

    Those above it can only become fewer: so it is, if it is among the `top_k` now, and would be within
    `top_p` if nothing below it were left.
    """
    own = weights[token]
    if own < max(wanted.min_p, _STEP):  # too many may be above it
        return False
    reaching = weights[weights >= own]
    if 0 < wanted.top_k < reaching.size:
        return False
    above = float(reaching.sum() - own)
    return above * (1 - wanted.top_p) <= wanted.top_p * float(own)


def place(weights: Floats, uniform: float) -> int:
    """Where the running sum of `weights` passes `uniform` of the whole: the block first, then inside it."""
    whole = weights.size // _BLOCK * _BLOCK
    blocks = np.empty(whole // _BLOCK + 1)
    # In half the time of `sum(1)`.
    blocks[:-1] = np.einsum("ij->i", weights[:whole].reshape(whole // _BLOCK, _BLOCK))
    blocks[-1] = weights[whole:].sum()
    np.cumsum(blocks, out=blocks)
    target = uniform * blocks[-1]
    block = _passes(blocks, target)
    start = block * _BLOCK
    before = blocks[block - 1] if block else 0.0
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    return start + _passes(inside, target - before)


def largest(row: Floats, count: int) -> Indices:
    """Indices of the `count` largest entries, largest first, equal ones by index."""
    groups = row.size // _GROUPS
    if count <= groups:
        # At least `count` entries reach the count-th largest of the groups' maxima: a bound without sorting
        # the row. (Of a row without NaN, `fmax` is `max` in a third of the time.)
        maxima = np.fmax.reduce(row[: groups * _GROUPS].reshape(_GROUPS, groups))
        candidates = np.flatnonzero(row >= np.partition(maxima, -count)[-count])
    else:
        candidates = np.arange(row.size)
    return candidates[np.argsort(-row[candidates], kind="stable")[:count]]


def _shortlist(row: Floats, peak: np.float32, wanted: SamplingParameters) -> Indices | None:
    """Tokens of logits [V] that hold all those to be kept, where that can be told without weights."""
    if 0 < wanted.top_k < row.size:
        return np.sort(largest(row, wanted.top_k))
    if wanted.min_p > 0 and wanted.top_p == 1:
        deepest = wanted.temperature * (math.log(wanted.min_p) - _EDGE)
        return np.flatnonzero(row >= peak + np.float32(deepest))
    return None


def _nucleus(weights: Floats, top_p: float) -> Indices:
    """The smallest set of largest weights that holds `top_p` of the whole, ascending (arXiv:1904.09751)."""
    share = top_p * float(weights.sum())
    candidates = _holding(weights, share)
    values = weights[candidates]
    falling = np.sort(values)[::-1]
    count = 1 + int(np.searchsorted(np.cumsum(falling, dtype=np.float64), share, side="left"))
    least = falling[min(count, falling.size) - 1]
    kept = candidates[values >= least]
    surplus = kept.size - count
    # Of equals at the edge, those of the lowest index stay.
    return np.delete(kept, np.flatnonzero(weights[kept] == least)[-surplus:]) if surplus > 0 else kept


def _holding(weights: Floats, share: float) -> Indices:
    """Indices of all weights above some floor, ascending, which together hold `share` of them."""
    floor = 1.0
    while floor > np.finfo(np.float32).tiny:
        floor *= _STEP
        candidates = np.flatnonzero(weights >= floor)
        if weights[candidates].sum() >= share:
            return candidates
    return np.arange(weights.size)


def _passes(running: NDArray[np.float64], target: float) -> int:
    """First index whose running sum exceeds `target`; rounding may not lead past the last positive weight."""
    return int(np.searchsorted(running, min(target, np.nextafter(running[-1], 0.0)), side="right"))

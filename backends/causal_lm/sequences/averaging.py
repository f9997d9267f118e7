"""Several prompts for one answer: their predictions of the next token become one."""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


def averaged(logits: Floats, rows: list[int]) -> Floats:
    """Logits (V,) whose softmax is the mean of the softmaxes of these `rows` of logits (n, V).

    One row is taken as it is, to the bit. The result lies where the rows lie in the mean, and not at
    log-probabilities, since a repetition penalty tells logits above zero from those below.
    """
    if len(rows) == 1:
        only: Floats = logits[rows[0]]
        return only
    own = logits[rows]
    with np.errstate(invalid="ignore"):  # infinity stays no number, and the sampler says so
        normalisers = _log_sum_exp(own, axis=1)  # (k, 1)
        scores = own - normalisers
        mean = _log_sum_exp(scores, axis=0)[0] - np.log(np.float32(len(rows)))
        pooled: Floats = mean + normalisers.mean()
    return pooled


def _log_sum_exp(values: Floats, axis: int) -> Floats:
    peaks = values.max(axis=axis, keepdims=True)
    total: Floats = peaks + np.log(np.exp(values - peaks).sum(axis=axis, keepdims=True))
    return total

"""Whether a model's probabilities can be believed, and whether its doubts fall on its errors."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NUM_BINS = 15


def expected_calibration_error(confidence: Tensor, is_right: Tensor, *, num_bins: int = NUM_BINS) -> float:
    """Σ n_b/N · |mean confidence - share right| over bins of equally many tokens.

    confidence (N,) is the probability of the likeliest token, is_right (N,) whether it came. 0 is perfect.
    Source: Guo et al., arXiv 1706.04599; bins of equal mass after Nixon et al., arXiv 1904.01685.
    """
    order = confidence.argsort(stable=True)
    gaps = (confidence.double() - is_right.double())[order]
    return sum(abs(part.sum().item()) for part in torch.tensor_split(gaps, num_bins)) / len(gaps)


def brier_terms(probabilities: Tensor, targets: Tensor) -> Tensor:
    """Σ_k (p_k - y_k)² of each prediction, from 0 (sure and right) to 2 (sure and wrong).

    probabilities (N, V), targets (N,) -> (N,); the Brier score is their mean. Source: Brier, 1950.
    """
    of_target = probabilities.gather(1, targets[:, None])[:, 0]
    return probabilities.square().sum(dim=-1) - 2 * of_target + 1


def spearman(a: Tensor, b: Tensor) -> float | None:
    """Correlation of the ranks of a (N,) and b (N,), equal values sharing their mean rank.

    None where it is undefined: one of them is constant.
    """
    ranks_a, ranks_b = _ranks(a), _ranks(b)
    if ranks_a.std() == 0 or ranks_b.std() == 0:
        return None
    return float(np.corrcoef(ranks_a, ranks_b)[0, 1])


def _ranks(values: Tensor) -> NDArray[np.float64]:
    _, places, counts = np.unique(values.double().numpy(), return_inverse=True, return_counts=True)
    last = counts.cumsum()
    ranks: NDArray[np.float64] = (last - (counts - 1) / 2)[places]
    return ranks

"""What a Bayesian model is trained for besides the next token: short descriptions, and honest confidence."""

import math

import torch.nn.functional as F
from torch import Tensor

from training.blocks.thought_budget import entropy
from training.data.batches import IGNORED


def mdl_regularized_loss(
    logits: Tensor, targets: Tensor, *, num_statistics: int, coefficient: float
) -> Tensor:
    """CE + β · relu(ΣNLL − n·Ĥ − ½ K ln n) / n: what is paid beyond the model's own entropy and its code.

    logits (N, V), targets (N,), IGNORED where nothing is learned; n counts the others, K is
    `num_statistics`. Ĥ is the mean entropy of the predictions, detached: being vague must not be a way out.
    Nats. Source: arXiv 2507.11768; ½ K ln n is the two-part code of K statistics.
    """
    penalty = mdl_penalty(logits, targets, num_statistics=num_statistics)
    return F.cross_entropy(logits, targets, ignore_index=IGNORED) + coefficient * penalty


def mdl_penalty(logits: Tensor, targets: Tensor, *, num_statistics: int) -> Tensor:
    """The part behind β; see mdl_regularized_loss."""
    is_learned = targets != IGNORED
    n = int(is_learned.sum())
    nll = F.cross_entropy(logits[is_learned], targets[is_learned], reduction="sum")
    expected = entropy(logits[is_learned]).detach().sum()
    return (nll - expected - 0.5 * num_statistics * math.log(n)).relu() / n


def belief_loss(
    logits: Tensor, targets: Tensor, confidence: Tensor, *, num_statistics: int, coefficient: float
) -> Tensor:
    """What a Bayesian model learns besides the cross entropy: the penalty β·(…), and its confidence."""
    penalty = mdl_penalty(logits, targets, num_statistics=num_statistics)
    return coefficient * penalty + confidence_loss(confidence, logits, targets)


def confidence_loss(confidence: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Cross entropy of "the likeliest token is the right one" under the belief's mean, a proper score.

    confidence (N,), logits (N, V), targets (N,), IGNORED where nothing is learned -> scalar. Only the
    confidence gets a gradient.
    """
    is_learned = targets != IGNORED
    is_right = (logits.argmax(dim=-1) == targets)[is_learned].to(confidence.dtype)
    return F.binary_cross_entropy(confidence[is_learned], is_right)

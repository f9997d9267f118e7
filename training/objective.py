"""What a batch teaches: the losses of its tokens, ready to be spread over ranks and rows."""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.bayesian_loss import belief_loss
from training.blocks.precision import at_least_float32, without_autocast
from training.blocks.router import RoutingSummary, summarize_routing
from training.data.batches import IGNORED, Batch
from training.decoder import Decoder


class Losses(NamedTuple):
    """Of one batch: cross entropy and belief loss per learned token, and the routers' weighted loss.

    `load` (layers, E) is that of all ranks' batches. Without experts it is empty; without experts or beliefs
    their loss is zero.
    """

    cross_entropy: Tensor
    belief: Tensor
    routing: Tensor
    load: Tensor

    @property
    def total(self) -> Tensor:
        """What is learned from."""
        return self.cross_entropy + self.routing + self.belief

    def weighed(self, *, learned: float, valid: float, load: float) -> "Losses":
        """As shares of a whole, by its learned and valid tokens, and of the load's tokens."""
        return Losses(
            self.cross_entropy * learned, self.belief * learned, self.routing * valid, self.load * load
        )

    def detached(self) -> "Losses":
        """The same numbers, with nothing behind them."""
        return Losses(*(tensor.detach() for tensor in self))


class Objective(nn.Module):
    """A decoder and what it is trained for. Its forward pass is what ranks share and autocast touches.

    `sum_over_ranks` adds the ranks' tensors; the balance loss needs the load of all.
    """

    def __init__(self, decoder: Decoder, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.decoder = decoder
        self._sum_over_ranks = sum_over_ranks

    def forward(self, batch: Batch) -> Losses:
        """The losses, in float32 or better, of a batch on the decoder's device."""
        config, routing, extras = self.decoder.config, list[Tensor](), dict[str, Tensor]()
        learned = batch.targets != IGNORED
        logits, _ = self.decoder(batch.input_ids, only=learned, routing=routing, extras=extras)  # (N, V)
        targets, device = batch.targets[learned], logits.device
        with without_autocast(logits):
            logits, zero = at_least_float32(logits), torch.zeros((), device=device)
            cross_entropy = F.cross_entropy(logits, targets, reduction="sum") / max(1, len(targets))
            routed = RoutingSummary(zero, torch.zeros(0, device=device))
            if routing:
                routed = summarize_routing(config, routing, batch.valid, combine=self._sum_over_ranks)
            belief = zero
            if "confidence" in extras and len(targets):
                belief = belief_loss(
                    logits,
                    targets,
                    extras["confidence"],
                    num_statistics=config.num_statistics,
                    coefficient=config.mdl_coefficient,
                )
        return Losses(cross_entropy, belief, routed.loss, routed.load)

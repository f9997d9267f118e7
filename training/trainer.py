"""The training loop's one step: loss, gradient, schedule, and all that a resumed run needs to go on alike."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.bayesian_loss import belief_loss
from training.blocks.router import RoutingSummary, summarize_routing
from training.data.batches import IGNORED, Batch, Batches
from training.decoder import Decoder
from training.recipes import Recipe

BETAS = (0.9, 0.98)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class StepReport:
    """What one step did. `loss` is the cross entropy per learned token; the other losses come on top."""

    step: int
    loss: float
    routing_loss: float
    belief_loss: float
    learning_rate: float
    gradient_norm: float
    num_tokens: int
    expert_load: list[list[float]]


@dataclass(frozen=True)
class Losses:
    """Of one batch: cross entropy, and the weighted losses of routers and beliefs; the load (layers, E)."""

    cross_entropy: Tensor
    routing: Tensor
    belief: Tensor
    load: Tensor

    @property
    def total(self) -> Tensor:
        """What is learned from."""
        return self.cross_entropy + self.routing + self.belief


@contextmanager
def reproducible(*, threads: int) -> Iterator[None]:
    """Inside, PyTorch computes on `threads` threads, whatever the machine has, deterministically."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


def learning_rate(recipe: Recipe, step: int) -> float:
    """Of step number `step`, from 0: linear warm-up, then half a cosine down to zero at `recipe.steps`."""
    if step < recipe.warmup_steps:
        return recipe.learning_rate * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


class Trainer:
    """A decoder on its way: `step` counts the steps done. Step n sees batch n, so data needs no state."""

    def __init__(
        self, recipe: Recipe, decoder: Decoder, batches: Batches, validation: Sequence[Batch]
    ) -> None:
        self.recipe = recipe
        self.decoder = decoder
        self.step = 0
        self._batches = batches
        self._validation = validation
        self._optimizer = _build_optimizer(recipe, decoder)

    def train_step(self) -> StepReport:
        """Learn from the next batch. Raises FloatingPointError when the loss is no longer a number."""
        batch = self._batches[self.step]
        rate = learning_rate(self.recipe, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        losses = self._losses(batch)
        torch.autograd.backward(losses.total)
        norm = torch.nn.utils.clip_grad_norm_(self.decoder.parameters(), self.recipe.clip_norm)
        if not math.isfinite(float(norm)):
            raise FloatingPointError(
                f"the gradient of step {self.step} is {norm}: train with a lower learning_rate"
            )
        self._optimizer.step()
        self._optimizer.zero_grad()
        self.decoder.balance_experts(losses.load)
        self.step += 1
        num_tokens = int(batch.valid.sum())
        return StepReport(
            step=self.step,
            loss=losses.cross_entropy.item(),
            routing_loss=losses.routing.item(),
            belief_loss=losses.belief.item(),
            learning_rate=rate,
            gradient_norm=norm.item(),
            num_tokens=num_tokens,
            expert_load=losses.load.tolist(),
        )

    def _losses(self, batch: Batch) -> Losses:
        """Without experts the load is empty; without experts or beliefs their loss is zero."""
        config, routing, extras = self.decoder.config, list[Tensor](), dict[str, Tensor]()
        learned = batch.targets != IGNORED
        logits, _ = self.decoder(batch.input_ids, only=learned, routing=routing, extras=extras)  # (N, V)
        targets = batch.targets[learned]
        none = RoutingSummary(torch.zeros(()), torch.zeros(0))
        routed = summarize_routing(config, routing, batch.valid) if routing else none
        belief = torch.zeros(())
        if "confidence" in extras:
            belief = belief_loss(
                logits,
                targets,
                extras["confidence"],
                num_statistics=config.num_statistics,
                coefficient=config.mdl_coefficient,
            )
        return Losses(F.cross_entropy(logits, targets), routed.loss, belief, routed.load)

    @torch.no_grad()
    def validate(self) -> float:
        """Cross entropy per learned token over the validation batches."""
        total = sum(
            float(self._losses(batch).cross_entropy) * batch.num_learned for batch in self._validation
        )
        return total / sum(batch.num_learned for batch in self._validation)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes: weights, the optimizer's moments, the random state. Not copies."""
        named = dict(self.decoder.named_parameters())
        moments = {
            f"{moment}/{name}": self._optimizer.state[parameter][moment]
            for name, parameter in named.items()
            for moment in MOMENTS
            if parameter in self._optimizer.state
        }
        weights = {f"weight/{name}": tensor for name, tensor in self.decoder.own_tensors().items()}
        return {**weights, **moments, "random": torch.get_rng_state()}

    @torch.no_grad()
    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Continue from `tensors()` after `step` steps. KeyError names a tensor that is missing."""
        for name, tensor in self.decoder.own_tensors().items():
            tensor.copy_(tensors[f"weight/{name}"])
        for name, parameter in self.decoder.named_parameters():
            if step:
                self._optimizer.state[parameter] = {m: tensors[f"{m}/{name}"].clone() for m in MOMENTS}
        torch.set_rng_state(tensors["random"])
        self.step = step


def _build_optimizer(recipe: Recipe, decoder: Decoder) -> torch.optim.AdamW:
    """AdamW; norms and biases do not decay."""
    parameters = list(decoder.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=BETAS, fused=True)

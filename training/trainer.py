"""The training loop's one step: loss, gradient, schedule, and all that a resumed run needs to go on alike."""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from torch import Tensor
from torch.amp.grad_scaler import GradScaler
from torch.distributed.fsdp import FSDPModule
from torch.nn.utils import clip_grad_norm_

from training.blocks.block import Block
from training.data.batches import Batch, Batches
from training.decoder import Decoder
from training.hardware import HardwareError, build_accelerator, placed_like, spread, whole
from training.objective import Losses, Objective
from training.optimizer import build_optimizer, learning_rate
from training.recipes import Recipe

MOMENTS = ("step", "exp_avg", "exp_avg_sq")
SCALER = ("scale", "_growth_tracker")  # of fp16's loss scale, what changes


@dataclass(frozen=True)
class StepReport:
    """What one step did on all ranks. `loss` is the cross entropy per learned token; the others come on top.

    `gradient_norm` is None for a step left out because fp16's loss scale made its gradient too large.
    """

    step: int
    loss: float
    routing_loss: float
    belief_loss: float
    learning_rate: float
    gradient_norm: float | None
    num_tokens: int
    expert_load: list[list[float]]


@contextmanager
def reproducible(*, threads: int) -> Iterator[None]:
    """Inside, PyTorch computes on `threads` threads, whatever the machine has; on a CPU deterministically."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(not torch.cuda.is_available())
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]


class Trainer:
    """A decoder on its way: `step` counts the steps done. Step n sees batch n, so data needs no state.

    A batch is that of all ranks together, however many there are and however many parts each takes it in.
    Raises HardwareError if it has too few rows for that.
    """

    def __init__(
        self,
        recipe: Recipe,
        decoder: Decoder,
        batches: Batches,
        validation: Sequence[Batch],
        accelerator: Accelerator | None = None,
    ) -> None:
        self.recipe = recipe
        self.decoder = decoder
        self.step = 0
        self.accelerator = accelerator or build_accelerator(recipe.mixed_precision)
        self._rank, self._num_ranks = self.accelerator.process_index, self.accelerator.num_processes
        _check_parts(recipe, self._num_ranks)
        self._batches = batches
        self._validation = validation
        for block in decoder.layers:
            assert isinstance(block, Block)
            block.recomputes = recipe.gradient_checkpointing
        objective = Objective(decoder, self._sum_over_ranks)
        self._model = spread(objective, self.accelerator, is_sharded=recipe.sharded)
        # An adapter's base stays as it is, the biases of its routers too.
        self._moves_biases = decoder.config.balancing == "bias" and recipe.lora is None
        self._learned = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        # Not in Accelerate's wrapper, which looks for packages at every step, a twentieth of a small model's.
        self._optimizer = build_optimizer(recipe, self._learned)
        self._scaler = self.accelerator.scaler or GradScaler(enabled=False)

    def train_step(self) -> StepReport:
        """Learn from the next batch. Raises FloatingPointError when the loss is no longer a number."""
        batch = self._batches[self.step]
        rate = learning_rate(self.recipe, self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        losses = self._add_gradients(batch)
        cross_entropy, belief, routing = self._sum_over_ranks(torch.stack(losses[:3])).tolist()
        norm = self._clip(cross_entropy)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        self._optimizer.zero_grad()
        if self._moves_biases:
            self.decoder.balance_experts(losses.load)
        self.step += 1
        return StepReport(
            step=self.step,
            loss=cross_entropy,
            routing_loss=routing,
            belief_loss=belief,
            learning_rate=rate,
            gradient_norm=norm,
            num_tokens=batch.num_valid,
            expert_load=losses.load.tolist(),
        )

    def _add_gradients(self, batch: Batch) -> Losses:
        """Add up the gradients of the batch's parts; returns this rank's share of the losses, and all load.

        A token counts alike on whatever rank and in whatever part it is: parts are weighed by their tokens.
        """
        num_parts, shares = self.recipe.accumulation, list[Losses]()
        for number in range(num_parts):
            part = batch.part(number, num_parts)
            own = part.part(self._rank, self._num_ranks)
            is_last = number == num_parts - 1
            with nullcontext() if is_last else self.accelerator.no_sync(self._model):
                losses: Losses = self._model(own.to(self.accelerator.device))
                share = losses.weighed(
                    learned=own.num_learned / batch.num_learned,
                    valid=own.num_valid / batch.num_valid,
                    load=part.num_valid / batch.num_valid,
                )
                # Ranks' gradients are averaged; the shares are to be added.
                self._scaler.scale(share.total * self._num_ranks).backward()
            shares.append(share.detached())
        return shares[0] if num_parts == 1 else Losses(*(sum(each) for each in zip(*shares, strict=True)))

    def _clip(self, loss: float) -> float | None:
        """Clip the gradient to the recipe's norm; returns the norm it had."""
        self._scaler.unscale_(self._optimizer)
        norm = clip_grad_norm_(self._learned, self.recipe.clip_norm)
        length = float(whole(norm))
        if math.isfinite(length):
            return length
        if self._scaler.is_enabled() and math.isfinite(loss):
            return None  # the scaler leaves the step out and scales less
        raise FloatingPointError(
            f"the gradient of step {self.step} is {length}: train with a lower learning_rate"
        )

    def any_rank(self, is_so: bool) -> bool:
        """Whether it is so on any of the ranks, each of which must ask."""
        if self._num_ranks == 1:
            return is_so
        return bool(self._sum_over_ranks(torch.tensor(int(is_so), device=self.accelerator.device)))

    def _sum_over_ranks(self, tensor: Tensor) -> Tensor:
        if self._num_ranks == 1:
            return tensor
        total: Tensor = self.accelerator.reduce(tensor, "sum")
        return total

    @torch.no_grad()
    def validate(self) -> float:
        """Cross entropy per learned token over the validation batches, of which each rank takes its part."""
        total = 0.0
        for batch in self._validation:
            own = batch.part(self._rank, self._num_ranks)
            losses: Losses = self._model(own.to(self.accelerator.device))
            total += float(losses.cross_entropy) * own.num_learned
        summed = self._sum_over_ranks(
            torch.tensor(total, dtype=torch.float64, device=self.accelerator.device)
        )
        return float(summed) / sum(batch.num_learned for batch in self._validation)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that changes: weights, the optimizer's moments, the random state. Not copies.

        Whole, whatever the number of ranks, each of which must ask.
        """
        moments = {
            f"{moment}/{name}": whole(self._optimizer.state[parameter][moment])
            for name, parameter in self.decoder.named_parameters()
            for moment in MOMENTS
            if parameter in self._optimizer.state
        }
        weights = {f"weight/{name}": whole(tensor) for name, tensor in self._changing().items()}
        return {**weights, **moments, **self._scale(), "random": torch.get_rng_state()}

    def _changing(self) -> dict[str, Tensor]:
        """Of the decoder's tensors those that are not frozen."""
        frozen = {name for name, parameter in self.decoder.named_parameters() if not parameter.requires_grad}
        return {name: t for name, t in self.decoder.own_tensors().items() if name not in frozen}

    def _scale(self) -> dict[str, Tensor]:
        state = self._scaler.state_dict()  # empty unless it scales
        return {f"scaler/{name}": torch.tensor(state[name]) for name in SCALER if name in state}

    @torch.no_grad()
    def restore(self, step: int, tensors: dict[str, Tensor]) -> None:
        """Continue from `tensors()` after `step` steps. KeyError names a tensor that is missing."""
        for name, tensor in self._changing().items():
            tensor.copy_(placed_like(tensors[f"weight/{name}"], tensor))
        for name, parameter in self.decoder.named_parameters():
            if step and parameter.requires_grad:
                moments = {moment: tensors[f"{moment}/{name}"] for moment in MOMENTS}
                self._optimizer.state[parameter] = {
                    moment: placed_like(value, parameter) for moment, value in moments.items()
                }
        if step and self._scaler.is_enabled():
            saved = {name: tensors[f"scaler/{name}"].item() for name in SCALER}
            self._scaler.load_state_dict({**self._scaler.state_dict(), **saved})
        torch.set_rng_state(tensors["random"])
        self.step = step

    def whole_decoder(self) -> Decoder:
        """The decoder with all its weights, to be evaluated and saved. Every rank must ask."""
        if not isinstance(self._model, FSDPModule):
            return self.decoder
        tensors = {name: whole(tensor) for name, tensor in self.decoder.own_tensors().items()}
        if self.recipe.lora is None:
            return Decoder.from_tensors(self.decoder.config, tensors).to(self.accelerator.device)
        from training.lora import rebuilt  # PEFT takes seconds to import

        return rebuilt(self.decoder.config, self.recipe.lora, tensors).to(self.accelerator.device)


def _check_parts(recipe: Recipe, num_ranks: int) -> None:
    if recipe.batch_size < recipe.accumulation * num_ranks:
        raise HardwareError(
            f"batch_size is {recipe.batch_size}, but {num_ranks} ranks × {recipe.accumulation} parts need at "
            "least a row each: give a larger batch, or fewer ranks or parts"
        )

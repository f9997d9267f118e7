"""Which experts a token goes to, and the losses and figures that say how evenly they are used."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.config import ModelConfig


def choose_experts(logits: Tensor, num_chosen: int) -> tuple[Tensor, Tensor]:
    """The best experts of each token and their weights, which sum to one.

    logits (N, E) -> weights (N, k), experts (N, k): softmax over all, then normalised over the chosen.
    """
    weights, experts = logits.softmax(dim=-1).topk(num_chosen, dim=-1)
    return weights / weights.sum(dim=-1, keepdim=True), experts


def choose_by_bias(logits: Tensor, bias: Tensor, num_chosen: int) -> Tensor:
    """Logits that make `choose_experts` choose by σ(z) + b and weigh by σ(z) alone, normalised.

    logits z (…, E), bias b (E,) -> (…, E): ln σ(z) of the chosen, whose softmax is σ(z) / Σσ(z), and -inf of
    the others. No gradient reaches b. Source: DeepSeek-V3, arXiv 2412.19437, and arXiv 2408.15664.
    """
    _, experts = (logits.detach().sigmoid() + bias).topk(num_chosen, dim=-1)
    numbers = torch.arange(logits.shape[-1], device=logits.device)
    is_chosen = (experts.unsqueeze(-1) == numbers).sum(dim=-2) > 0  # (…, E)
    return torch.where(is_chosen, F.logsigmoid(logits), -math.inf)


def bias_step(load: Tensor, rate: float) -> Tensor:
    """How far each expert's bias moves after a step with this load, (E,): u · sign(mean load - load)."""
    return rate * (load.mean() - load).sign()


def expert_counts(logits: Tensor, num_chosen: int) -> Tensor:
    """How many choices fell on each expert, logits (N, E) -> (E,)."""
    _, experts = choose_experts(logits, num_chosen)
    return F.one_hot(experts.flatten(), logits.shape[-1]).sum(dim=0)


def expert_load(logits: Tensor, num_chosen: int) -> Tensor:
    """The share of all choices that fell on each expert: f_i = count_i / (N·k), logits (N, E) -> (E,)."""
    return _shares(expert_counts(logits, num_chosen))


def _shares(counts: Tensor) -> Tensor:
    return counts / counts.sum(dim=-1, keepdim=True)


def balance_loss(logits: Tensor, num_chosen: int, load: Tensor | None = None) -> Tensor:
    """E Σ f_i P_i with P_i the mean probability: 1 when uniform, E/k when k experts take everything.

    `load` f (E,) is that of `logits` (N, E), unless they are only a part of what the load is taken over.
    Source: Switch Transformer, arXiv 2101.03961, with the 1/k that makes the constant hold for k > 1.
    """
    load = expert_load(logits, num_chosen) if load is None else load
    return logits.shape[-1] * (load * logits.softmax(dim=-1).mean(dim=0)).sum()


def z_loss(logits: Tensor) -> Tensor:
    """The mean of logsumexp(z)²: keeps router logits small. Source: ST-MoE, arXiv 2202.08906."""
    return logits.logsumexp(dim=-1).square().mean()


@dataclass(frozen=True)
class LoadFigures:
    """How even a load is: 0, 0, 0 and 1 when every expert gets the same.

    `variation` is standard deviation over mean, `max_violation` the largest load over the mean less 1,
    `dead` the number of experts with no token, `entropy` that of the load over its largest value, ln E.
    """

    variation: float
    max_violation: float
    dead: int
    entropy: float


def describe_load(load: Tensor) -> LoadFigures:
    """The figures of one layer's load (E,), E > 1, as `expert_load` gives it."""
    mean = load.mean()
    return LoadFigures(
        variation=(load.std(correction=0) / mean).item(),
        max_violation=(load.max() / mean - 1).item(),
        dead=int((load == 0).sum()),
        entropy=torch.special.entr(load).sum().item() / math.log(load.numel()),
    )


@dataclass(frozen=True)
class RoutingSummary:
    """The routers of one forward pass: `loss` (scalar, to be added to the model's) and `load` (layers, E)."""

    loss: Tensor
    load: Tensor


def summarize_routing(
    config: ModelConfig,
    routing: list[Tensor],
    valid: Tensor | None = None,
    *,
    combine: Callable[[Tensor], Tensor] = lambda counts: counts,
) -> RoutingSummary:
    """Losses and load of the router logits that a forward pass collected.

    `routing` holds (B, T, E) per expert layer; `valid` (B, T) is true for tokens that count, None for all.
    The losses are means over the layers, and none with `bias` balancing. `combine` adds other ranks' counts
    to the experts' counts (layers, E): the load is that of all, so that the ranks' balance losses, weighted
    by their tokens, have the mean that one rank would find. Raises ValueError when nothing was collected.
    """
    if not routing:
        raise ValueError("routing is empty: give it to Decoder.forward first, on a model with ffn 'moe'")
    chosen = config.experts_per_token
    layers = [logits.flatten(0, 1) if valid is None else logits[valid] for logits in routing]
    load = _shares(combine(torch.stack([expert_counts(z.detach(), chosen) for z in layers])))
    if config.balancing == "bias":
        return RoutingSummary(torch.zeros((), device=load.device), load)
    losses = [balance_loss(z, chosen, own) for z, own in zip(layers, load, strict=True)]
    balance = torch.stack(losses).mean()
    size = torch.stack([z_loss(z) for z in layers]).mean()
    return RoutingSummary(config.balance_coefficient * balance + config.z_coefficient * size, load)

"""The decoder: embedding (+ positions) → layers → norm → head."""

import math
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Self

import torch
from torch import Tensor, nn

from training.blocks.block import Block
from training.blocks.forward_pass import ForwardPass
from training.blocks.mixer import Mixer
from training.blocks.moe import MoE
from training.blocks.norm import build_norm
from training.blocks.rotary import Rotary
from training.blocks.state import State, StateSpec
from training.blocks.thought_budget import OptimalCoTLayer
from training.config import ModelConfig
from training.lowering import active_lowering

SMALL_STD = 0.02
GPT2_GAIN = 0.4  # at its width of 768: 0.014, where its paper has 0.02
RESIDUAL_OUTPUTS = (
    "mixer.out.weight",
    "mixer.statistics.out.weight",
    "ffn.down.weight",
    "ffn.down",
    "ffn.shared.down.weight",
)


class Decoder(nn.Module):
    """A language model as its config describes it.

    A state is a flat tuple of tensors in the order of `state_specs()`, each with the batch as first axis.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab_size, config.d_model)
        is_learned = config.position == "learned"
        self.position = nn.Embedding(config.max_length, config.d_model) if is_learned else None
        self.embedding_norm = build_norm(config) if config.embedding_norm else nn.Identity()
        self.rotary = (
            Rotary(config.head_dim, config.max_length, config.rope_theta, config.rope_scaling)
            if config.needs_rotary
            else None
        )
        self.layers = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = build_norm(config) if config.norm_placement == "pre" else nn.Identity()
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=config.head_bias)
        if config.tied_head:
            self.head.weight = self.embedding.weight
        self.budget = OptimalCoTLayer() if "bayesian_attention" in config.mixers else None
        init_weights(self)

    @classmethod
    def from_tensors(cls, config: ModelConfig, tensors: Mapping[str, Tensor]) -> Self:
        """A decoder that owns the given weights, with no random ones made first.

        `tensors` are named as in `state_dict()`; a tied head needs no `head.weight`.
        Raises RuntimeError naming missing, unexpected and wrongly shaped tensors.
        """
        weights = dict(tensors)
        with torch.device("meta"):
            decoder = cls(config)
        if config.tied_head and "embedding.weight" in weights:
            weights["head.weight"] = weights["embedding.weight"]
        decoder.load_state_dict(weights, assign=True)
        if config.tied_head:
            decoder.head.weight = decoder.embedding.weight
        return decoder

    def forward(
        self,
        input_ids: Tensor,
        *,
        positions: Tensor | None = None,
        lengths: Tensor | None = None,
        state: State | None = None,
        only: Tensor | None = None,
        at: Tensor | None = None,
        routing: list[Tensor] | None = None,
        extras: dict[str, Tensor] | None = None,
    ) -> tuple[Tensor, State]:
        """Full sequences, or with `state` one serving step. `input_ids` (B, T).

        Without state: logits (B, T, V) at every token, or (N, V) at the tokens where `only` (B, T) is true,
        and the empty state. With state: logits (B, V) at each row's last valid token, or (B, K, V) at the
        tokens whose places in the row are `at` (B, K), and the state after the last valid one.
        `positions` (B, T) count from 0 (default: 0 to T-1); `lengths` (B,) are valid tokens per row
        (default: all). Router logits (B, T, E) of each expert layer are appended to `routing` if it is
        given. `extras`, if given, gets the figures of `extra_names()`, shaped like the logits without V.
        Raises ValueError for more than `max_length` tokens.
        """
        B, T = input_ids.shape
        if positions is None:
            self._check_length(T)
            positions = torch.arange(T, device=input_ids.device).expand(B, T)
        if state is not None:
            lengths = torch.full((B,), T, device=input_ids.device) if lengths is None else lengths
            # Padding counts as position 0, or its positions could run past the tables.
            positions = positions * (torch.arange(T, device=input_ids.device) < lengths[:, None])
        step = ForwardPass(positions, lengths, self.rotary, active_lowering(), routing, extras)
        x, state_after = self._run_layers(self._embed(input_ids, positions), state, step)
        pick = _picker(only, at, None if state is None else lengths)
        x, positions = pick(x), pick(positions)
        if extras is not None:
            extras.update({name: pick(figure) for name, figure in extras.items()})
        # By one axis of tokens: of more, an exported graph would hold a tied table twice, once transposed.
        logits = self.head(self.norm(x).flatten(0, -2)).unflatten(0, x.shape[:-1])
        if extras is not None and self.budget is not None:
            extras["thought_budget"] = self.budget(logits, positions + 1)
        return logits, state_after

    def extra_names(self) -> tuple[str, ...]:
        """What the model can say besides logits, one figure per token each: a graph's extra outputs."""
        named = [name for layer in range(len(self.layers)) for name in self._mixer(layer).extra_names]
        return (*dict.fromkeys(named), *(() if self.budget is None else ("thought_budget",)))

    def _check_length(self, T: int) -> None:
        limit = self.config.max_length
        if limit < T:
            raise ValueError(f"{T} tokens were given, but max_length is {limit}: cut the input")

    def _embed(self, input_ids: Tensor, positions: Tensor) -> Tensor:
        x: Tensor = self.embedding(input_ids)  # (B, T, C)
        if self.config.embedding_scale != 1:
            x = x * self.config.embedding_scale
        if self.position is not None:
            x = x + self.position(positions)
        normalised: Tensor = self.embedding_norm(x)
        return normalised

    def _run_layers(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        before = iter(state or ())
        after: list[Tensor] = []
        for layer, block in enumerate(self.layers):
            own = None if state is None else tuple(islice(before, len(self._specs_of(layer))))
            x, own_after = block(x, own, step)
            after.extend(own_after)
        return x, tuple(after)

    def _mixer(self, layer: int) -> Mixer:
        block = self.layers[layer]
        assert isinstance(block, Block)
        return block.mixer

    def _specs_of(self, layer: int) -> tuple[StateSpec, ...]:
        return self._mixer(layer).state_specs(layer)

    def state_specs(self) -> tuple[StateSpec, ...]:
        """Every state tensor, layer by layer: graph, manifest and engine are derived from it."""
        return tuple(spec for layer in range(len(self.layers)) for spec in self._specs_of(layer))

    def init_state(self, batch: int) -> State:
        """The state of `batch` sequences before their first token: zeros."""
        device = self.embedding.weight.device
        return tuple(spec.zeros(batch, device) for spec in self.state_specs())

    def balance_experts(self, load: Tensor) -> None:
        """After a training step with this load (expert layers, E): move the biases of `bias` balancing."""
        experts = [module for module in self.modules() if isinstance(module, MoE)]
        for moe, own in zip(experts, load, strict=True):
            moe.balance(own)

    def own_tensors(self) -> dict[str, Tensor]:
        """All that is learned, by name, not copied; a tied head is the embedding and not named twice."""
        tensors = dict(self.state_dict())
        if self.config.tied_head:
            del tensors["head.weight"]
        return tensors

    def num_parameters(self) -> int:
        """Weights in all; a tied head counts once."""
        return sum(parameter.numel() for parameter in self.parameters())


def _picker(only: Tensor | None, at: Tensor | None, lengths: Tensor | None) -> Callable[[Tensor], Tensor]:
    """What takes from (B, T, …) the tokens that logits are wanted of: `only`, `at`, each last one, or all."""
    if at is not None:
        return lambda x: _gather(x, at)
    if lengths is not None:
        return lambda x: _gather(x, lengths.unsqueeze(1) - 1).squeeze(1)
    return (lambda x: x) if only is None else (lambda x: x[only])


def _gather(x: Tensor, places: Tensor) -> Tensor:
    """The values of x (B, T, …) at each row's `places` (B, K), (B, K, …)."""
    return x.gather(1, places.view(*places.shape, *[1] * (x.ndim - 2)).expand(-1, -1, *x.shape[2:]))


def count_parameters(config: ModelConfig) -> int:
    """Weights of the decoder that `config` describes, with none of them made."""
    with torch.device("meta"):
        return Decoder(config).num_parameters()


def init_weights(decoder: Decoder) -> None:
    """Fill all weights: normal with std fan_in^-½; outputs to the residual stream smaller by (2·layers)^½.

    Embeddings and routers start small (std 0.02), so that a tied head begins near uniform and routing even.
    GPT-2, with learned positions and norms before its parts, keeps the proportions of its paper at any width:
    all weights are smaller, tokens have the same spread and positions half of it. What a token is would else
    drown in what the first layers add to it, and narrow models would take long to find it again.
    """
    for name, parameter in decoder.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
        elif parameter.ndim == 1:
            nn.init.ones_(parameter)
        else:
            nn.init.normal_(parameter, std=_first_std(name, parameter.shape[-1], decoder.config))


def _first_std(name: str, fan_in: int, config: ModelConfig) -> float:
    """What the matrix `name` is drawn with."""
    is_gpt2 = config.position == "learned" and config.norm_placement == "pre"
    is_table = name.startswith(("embedding", "position"))
    if "router" in name or "debias.pattern" in name or (is_table and not is_gpt2):
        return SMALL_STD
    std: float = (GPT2_GAIN if is_gpt2 else 1.0) * fan_in**-0.5
    if name.startswith("position"):
        return std / 2
    return std / math.sqrt(2 * config.num_layers) if name.endswith(RESIDUAL_OUTPUTS) else std

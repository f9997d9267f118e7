"""What a model is: sizes and choices, as validated data that is saved as `config.json`."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator

MAX_LAYERS = 100  # state names carry two digits, so that past and present sort alike

MixerName = Literal["attention", "gated_attention", "bayesian_attention", "retention"]
FeedForwardName = Literal["mlp", "swiglu", "moe"]
Decays = Literal["doubling", "spread"]


class RopeScaling(BaseModel):
    """Rotary positions stretched for a context `factor` times as long as the one first trained on.

    `linear` slows every pair of channels; `llama3` only those that turn slowly: less than `slow_turns` times
    in `original_length` tokens, with a ramp from there to `fast_turns`, beyond which a pair stays as it is.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["linear", "llama3"]
    factor: float = Field(ge=1, allow_inf_nan=False)
    original_length: PositiveInt | None = None
    slow_turns: PositiveFloat = 1.0
    fast_turns: PositiveFloat = 4.0

    @model_validator(mode="after")
    def _ramp_rises(self) -> Self:
        if self.kind == "llama3" and self.original_length is None:
            raise ValueError("original_length is missing, but 'llama3' needs it: the context before scaling")
        if self.slow_turns >= self.fast_turns:
            raise ValueError(
                f"slow_turns {self.slow_turns} and fast_turns {self.fast_turns}: the first must be smaller"
            )
        return self


class ModelConfig(BaseModel):
    """A decoder's architecture; frozen, and every field is checked when it is made or read.

    `mixer` and `ffn` are one name for all layers or one name per layer. `value_dim` is the width of a
    retention head's values (attention's are `head_dim` wide). `d_ff` is the inner width of the feed-forward
    network, for `moe` of each expert. A last norm before the head belongs to `pre` placement only.
    `sliding_window` is how many tokens attention sees, its own the last; `qk_norm` puts an RMSNorm over
    each head's query and key, before rotation. `biases` `attention` is those of query, key, value and out.
    `embedding_scale` multiplies the embedding, and `embedding_norm` puts a norm over it, positions included.
    `decays` is how far the heads of a retention remember, 1 / (1 - γ): `doubling` from 32 tokens, head by
    head, or `spread` evenly from 32 to 512, on a logarithmic scale. `retention_scaling` divides what a head
    sums up by the root of its decays' sum, before its norm.
    `num_statistics` are the running sums of `bayesian_attention`, half of them counts; `mdl_coefficient`
    weighs the description-length penalty in its training.
    `balancing` keeps experts evenly used: `loss` by the losses that the two coefficients weigh, `bias` by a
    bias on the choice alone, moved by `bias_rate` after every step, with no loss.
    Raises pydantic's ValidationError, which says per field what was given and what is allowed.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal["trident-checkpoint/1"] = "trident-checkpoint/1"

    vocab_size: PositiveInt
    max_length: PositiveInt
    d_model: PositiveInt
    num_layers: int = Field(ge=1, le=MAX_LAYERS)
    num_heads: PositiveInt
    num_kv_heads: PositiveInt
    head_dim: PositiveInt
    value_dim: PositiveInt | None = None
    d_ff: PositiveInt
    num_statistics: int = Field(default=0, ge=0)

    mixer: MixerName | tuple[MixerName, ...]
    ffn: FeedForwardName | tuple[FeedForwardName, ...]
    activation: Literal["gelu", "gelu_tanh", "relu", "silu"] = "gelu_tanh"

    norm: Literal["layernorm", "rmsnorm"] = "rmsnorm"
    norm_placement: Literal["pre", "post"] = "pre"
    norm_eps: PositiveFloat = 1e-5

    position: Literal["learned", "rope", "none"] = "rope"
    rope_theta: PositiveFloat = 10_000.0
    rope_scaling: RopeScaling | None = None
    sliding_window: PositiveInt | None = None
    qk_norm: bool = False
    decays: Decays = "doubling"
    retention_scaling: bool = False
    embedding_scale: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    embedding_norm: bool = False

    biases: Literal["none", "qkv", "attention", "all"] = "none"
    tied_head: bool = True
    head_bias: bool = False

    num_experts: int = Field(default=0, ge=0)
    experts_per_token: int = Field(default=0, ge=0)
    num_shared_experts: int = Field(default=0, ge=0)
    balancing: Literal["loss", "bias"] = "loss"
    bias_rate: PositiveFloat = 0.001
    balance_coefficient: float = Field(default=0.01, ge=0)
    z_coefficient: float = Field(default=0.001, ge=0)
    mdl_coefficient: float = Field(default=0.1, ge=0)

    @property
    def mixers(self) -> tuple[MixerName, ...]:
        """The mixer of each layer."""
        return (self.mixer,) * self.num_layers if isinstance(self.mixer, str) else self.mixer

    @property
    def ffns(self) -> tuple[FeedForwardName, ...]:
        """The feed-forward network of each layer."""
        return (self.ffn,) * self.num_layers if isinstance(self.ffn, str) else self.ffn

    @property
    def needs_rotary(self) -> bool:
        """Whether any layer rotates its queries and keys: attention by choice, retention always."""
        return self.position == "rope" or "retention" in self.mixers

    @model_validator(mode="after")
    def _patterns_fit(self) -> Self:
        for field, names in (("mixer", self.mixers), ("ffn", self.ffns)):
            if len(names) != self.num_layers:
                raise ValueError(
                    f"{field} names {len(names)} layers, but num_layers is {self.num_layers}: "
                    "give one name for all layers, or one per layer"
                )
        return self

    @model_validator(mode="after")
    def _heads_fit(self) -> Self:
        if self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"num_kv_heads is {self.num_kv_heads}, which does not divide num_heads {self.num_heads}: "
                "every key head serves the same number of query heads"
            )
        if self.needs_rotary and self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}, but rotation needs an even number")
        if "retention" in self.mixers and self.value_dim is None:
            raise ValueError(
                f"value_dim is missing, but retention needs it: 2 * head_dim = {2 * self.head_dim} is usual"
            )
        return self

    @model_validator(mode="after")
    def _attention_settings_fit(self) -> Self:
        if self.rope_scaling is not None and self.position != "rope":
            raise ValueError(
                f"rope_scaling is given, but position is {self.position!r}: leave it out, or choose 'rope'"
            )
        given = {"sliding_window": self.sliding_window is not None, "qk_norm": self.qk_norm}
        for field in (name for name, is_given in given.items() if is_given):
            if set(self.mixers) == {"retention"}:
                raise ValueError(f"{field} is given, but no layer's mixer is an attention: leave it out")
        return self

    @model_validator(mode="after")
    def _retention_settings_fit(self) -> Self:
        given = {"decays": self.decays != "doubling", "retention_scaling": self.retention_scaling}
        for field in (name for name, is_given in given.items() if is_given):
            if "retention" not in self.mixers:
                raise ValueError(f"{field} is given, but no layer's mixer is 'retention': leave it out")
        return self

    @model_validator(mode="after")
    def _statistics_fit(self) -> Self:
        given, is_used = self.num_statistics, "bayesian_attention" in self.mixers
        if is_used and (given < 4 or given % 2):
            raise ValueError(
                f"num_statistics is {given}, but 'bayesian_attention' needs an even number from 4 on: "
                "half of them are counts, and two counts make its belief"
            )
        if given and not is_used:
            raise ValueError(
                f"num_statistics is {given}, but no layer's mixer is 'bayesian_attention': leave it out"
            )
        return self

    @model_validator(mode="after")
    def _experts_fit(self) -> Self:
        given = f"num_experts {self.num_experts}, experts_per_token {self.experts_per_token}"
        given += f", balancing {self.balancing!r}"
        if "moe" not in self.ffns:
            sizes = (self.num_experts, self.experts_per_token, self.num_shared_experts)
            if any(sizes) or self.balancing == "bias":
                raise ValueError(f"{given}, but no layer's ffn is 'moe': leave them out, or choose 'moe'")
        elif not 1 <= self.experts_per_token <= self.num_experts:
            raise ValueError(f"{given}: ffn 'moe' needs 1 <= experts_per_token <= num_experts")
        return self

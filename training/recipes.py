"""What it takes to train a model again: the architecture, the data, the schedule and every seed."""

from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from training.chat import ChatName
from training.config import ModelConfig
from training.data.choice import AtlasData, DataChoice
from training.data.corpus import Shape
from training.presets import PRESETS

Precision = Literal["no", "bf16", "fp16"]


class Lora(BaseModel):
    """A low-rank adapter: W + alpha / rank · B A on the linear layers that `targets` name by their ending."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: PositiveInt = 8
    alpha: PositiveInt = 16
    targets: tuple[str, ...] = ("query", "value")


class Base(BaseModel):
    """The model that a run begins from: a directory, and the SHA-256 of its weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: Path
    sha256: str


class Recipe(BaseModel):
    """A training run as data; the same recipe gives the same weights on the same machine and versions.

    Rows of text have `sequence_length` tokens and conversations at most that many; None is all that the model
    can hold. `validation_tokens` bounds what the validation loss is measured on, `num_cases` each test set
    (None: atlas's whole sets, 200 of a chat). The learning rate rises linearly over `warmup_steps` and falls
    to zero along a cosine at `steps`. `*_every` count steps.

    With `base` the weights begin as that model's, else they are drawn from `seed`; with `lora` they stay as
    they are, and an adapter is trained beside them. A batch is taken in `accumulation` parts, by all ranks
    together: neither number changes what is learned. `gradient_checkpointing` computes activations twice
    instead of keeping them; `sharded` spreads the weights over the ranks, which otherwise have a copy each.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: ModelConfig
    chat: ChatName = "roles"
    steps: PositiveInt
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    warmup_steps: PositiveInt
    weight_decay: NonNegativeFloat
    clip_norm: PositiveFloat = 1.0
    data: DataChoice = AtlasData()
    sequence_length: PositiveInt | None = None
    validation_tokens: PositiveInt = 50_000
    num_cases: PositiveInt | None = None
    seed: int = 0
    threads: PositiveInt = 2
    base: Base | None = None
    lora: Lora | None = None
    mixed_precision: Precision = "no"
    accumulation: PositiveInt = 1
    gradient_checkpointing: bool = False
    sharded: bool = False
    log_every: PositiveInt = 10
    validate_every: PositiveInt = 100
    save_every: PositiveInt = 100

    @property
    def shape(self) -> Shape:
        """How the data are cut into batches and tests."""
        return Shape(
            batch_size=self.batch_size,
            max_tokens=self.sequence_length or self.model.max_length,
            seed=self.seed,
            validation_tokens=self.validation_tokens,
            num_cases=self.num_cases,
        )

    @model_validator(mode="after")
    def _rows_fit(self) -> Self:
        if self.sequence_length is not None and self.sequence_length > self.model.max_length:
            raise ValueError(
                f"sequence_length is {self.sequence_length}, but the model's max_length is "
                f"{self.model.max_length}: give at most that"
            )
        return self


def _tiny(preset: str, chat: ChatName = "roles") -> Recipe:
    """Seconds instead of minutes: the same way on six countries, for trying it out and for tests."""
    model = PRESETS[preset].model_copy(update={"vocab_size": 384})
    return Recipe(
        model=model,
        chat=chat,
        steps=60,
        batch_size=8,
        learning_rate=3e-3,
        warmup_steps=10,
        weight_decay=0.05,
        data=AtlasData(num_countries=6),
        num_cases=16,
        threads=1,
        log_every=1,
        validate_every=20,
        save_every=10,
    )


RECIPES: dict[str, Recipe] = {
    "atlas": Recipe(
        model=PRESETS["atlas"],
        steps=2000,
        batch_size=48,
        learning_rate=3e-3,
        warmup_steps=80,
        weight_decay=0.05,
    ),
    "retnet-moe-tiny": _tiny("retnet-moe-tiny"),
    "llama-tiny": _tiny("llama-tiny"),
    "gpt2-tiny": _tiny("gpt2-tiny"),
    "arslm-tiny": _tiny("arslm-tiny"),
    "tars-tiny": _tiny("tars-tiny"),
    "bayesian-tiny": _tiny("bayesian-tiny"),
    "mini-claude-tiny": _tiny("mini-claude-tiny", chat="turns"),
}


def _full(preset: str) -> Recipe:
    """A preset without a recipe of its own, in its true size: NeuroForge's schedule."""
    return Recipe(
        model=PRESETS[preset],
        chat="turns" if preset.startswith("dialogpt") else "roles",
        steps=20_000,
        batch_size=32,
        accumulation=4,
        learning_rate=6e-4,
        warmup_steps=1000,
        weight_decay=0.01,
        validate_every=500,
        save_every=500,
    )


def recipe(name: str) -> Recipe:
    """The recipe called `name`, or the full-sized one of a preset; KeyError lists the known ones."""
    if name in RECIPES:
        return RECIPES[name]
    if name in PRESETS:
        return _full(name)
    raise KeyError(
        f"unknown recipe {name!r}; known: {', '.join(sorted(RECIPES))}, and what `trident presets` lists"
    )

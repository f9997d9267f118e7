"""What it takes to train a model again: the architecture, the data, the schedule and every seed."""

from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt

from training.chat import ChatName
from training.config import ModelConfig
from training.presets import PRESETS


class Recipe(BaseModel):
    """A training run as data; the same recipe gives the same weights on the same machine and versions.

    `num_countries` and `num_cases` (of each test set) cut the atlas data set, None leaves it whole. The
    learning rate rises linearly over `warmup_steps` and falls to zero along a cosine at `steps`.
    `*_every` count steps.
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
    num_countries: PositiveInt | None = None
    num_cases: PositiveInt | None = None
    seed: int = 0
    threads: PositiveInt = 2
    log_every: PositiveInt = 10
    validate_every: PositiveInt = 100
    save_every: PositiveInt = 100


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
        num_countries=6,
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


def recipe(name: str) -> Recipe:
    """The recipe called `name`; KeyError lists the known ones."""
    if name not in RECIPES:
        raise KeyError(f"unknown recipe {name!r}; known: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]

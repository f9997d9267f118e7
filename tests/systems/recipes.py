"""The systems in a size that trains in minutes of one CPU, on real dialogues."""

from dataclasses import dataclass

from training.chat import ChatName
from training.data.choice import ChitchatData
from training.presets import preset
from training.recipes import Recipe

VOCAB_SIZE, MAX_LENGTH = 384, 128


@dataclass(frozen=True)
class System:
    """A preset, and whose architecture it is in small."""

    preset: str
    origin: str
    chat: ChatName = "roles"
    steps: int = 1500

    @property
    def recipe(self) -> Recipe:
        """One thread, whose seconds are those of the CPU; batches of 16 rows of at most MAX_LENGTH tokens."""
        return Recipe(
            model=preset(self.preset).model_copy(update={"vocab_size": VOCAB_SIZE, "max_length": MAX_LENGTH}),
            chat=self.chat,
            data=ChitchatData(),
            steps=self.steps,
            batch_size=16,
            learning_rate=3e-3,
            warmup_steps=50,
            weight_decay=0.05,
            validation_tokens=20_000,
            num_cases=16,
            threads=1,
            validate_every=200,
            save_every=200,
        )


SYSTEMS = (
    System("arslm-tiny", "ARSLM: gated attention", steps=2500),
    System("mini-claude-tiny", "Mini-Claude: GPT-2", chat="turns"),
    System("bayesian-tiny", "Bayesian expectation transformer"),
    System("retnet-moe-tiny", "NeuroForge: retention and experts"),
    System("tars-tiny", "TARS: LLaMA with a tied head"),
    System("llama-tiny", "LLaMA: grouped key heads"),
    System("gpt2-tiny", "GPT-2", steps=2500),
)

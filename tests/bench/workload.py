"""What every contender does: read some prompts, then write the same number of greedy tokens for each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Workload:
    """`streams` sequences at once, each with its own random prompt; one new token makes it a prefill."""

    streams: int
    prompt_tokens: int
    new_tokens: int

    @property
    def is_prefill(self) -> bool:
        return self.new_tokens == 1

    @property
    def name(self) -> str:
        """How a row calls it."""
        if self.is_prefill:
            return f"prefill of {self.prompt_tokens}"
        prompt = f", prompts of {self.prompt_tokens}" if self.prompt_tokens > 32 else ""
        return f"{self.streams} stream{'s' * (self.streams > 1)}{prompt}"

    @property
    def tokens(self) -> int:
        """What a rate counts: the new tokens, of a prefill those of the prompts."""
        return self.streams * (self.prompt_tokens if self.is_prefill else self.new_tokens)

    def prompts(self, vocab_size: int) -> NDArray[np.int64]:
        """Token ids (streams, prompt_tokens), the same at every call."""
        generator = np.random.default_rng(self.streams)
        return generator.integers(vocab_size // 2, vocab_size, (self.streams, self.prompt_tokens))

"""What every contender does: read some prompts, then write the same number of greedy tokens for each."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Workload:
    """`streams` sequences at once, each with its own random prompt."""

    streams: int
    prompt_tokens: int
    new_tokens: int

    @property
    def total_new_tokens(self) -> int:
        """Tokens written by one measurement."""
        return self.streams * self.new_tokens

    def prompts(self, vocab_size: int) -> NDArray[np.int64]:
        """Token ids (streams, prompt_tokens), the same at every call."""
        generator = np.random.default_rng(self.streams)
        return generator.integers(vocab_size // 2, vocab_size, (self.streams, self.prompt_tokens))

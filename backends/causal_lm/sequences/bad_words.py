"""Words that an answer must not hold, as sequences of tokens."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer


class BadWords:
    """Bars the token that would complete a bad word; a constraint of the sampler.

    A word is known as the tokenizer writes it at the start of a text and after a space; what other tokens
    spell it is not barred (as in vLLM and TensorRT-LLM).
    """

    def __init__(self, words: Sequence[str], tokenizer: Tokenizer) -> None:
        spellings = [text for word in words for text in (word, f" {word.lstrip()}")]
        encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in spellings]
        self._words = [ids for ids in encoded if ids]
        self._longest = max(map(len, self._words), default=1)
        self._tail: list[int] = []
        self.ends = False

    def allows(self, token: int) -> bool:
        """Whether `token` completes no bad word."""
        return not any(ids[-1] == token and self._said(ids[:-1]) for ids in self._words)

    def restrict(self, row: NDArray[np.float32]) -> None:
        """Bar in logits [V] the last token of each word whose other tokens have just been said."""
        row[[ids[-1] for ids in self._words if self._said(ids[:-1])]] = -np.inf

    def advance(self, token: int) -> None:
        """Take the chosen token."""
        self._tail = [*self._tail, token][-self._longest :]

    def _said(self, ids: list[int]) -> bool:
        return not ids or self._tail[-len(ids) :] == ids

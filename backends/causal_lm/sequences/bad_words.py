"""Words that an answer must not hold, as sequences of tokens."""

from collections.abc import Sequence

from tokenizers import Tokenizer


class BadWords:
    """Knows the tokens that would complete a bad word.

    A word is known as the tokenizer writes it at the start of a text and after a space; what other tokens
    spell it is not barred (as in vLLM and TensorRT-LLM).
    """

    def __init__(self, words: Sequence[str], tokenizer: Tokenizer) -> None:
        spellings = [text for word in words for text in (word, f" {word.lstrip()}")]
        encoded = [tokenizer.encode(text, add_special_tokens=False).ids for text in spellings]
        self._words = [ids for ids in encoded if ids]
        self._longest = max(map(len, self._words), default=1)
        self._tail: list[int] = []

    def barred(self) -> list[int]:
        """The last token of each word whose other tokens have just been said."""
        return [ids[-1] for ids in self._words if self._said(ids[:-1])]

    def advance(self, token: int) -> None:
        """Take the chosen token."""
        self._tail = [*self._tail, token][-self._longest :]

    def _said(self, ids: list[int]) -> bool:
        return not ids or self._tail[-len(ids) :] == ids

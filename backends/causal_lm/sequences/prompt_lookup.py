"""Drafts of what comes next, looked up in the text so far: no second model (prompt lookup decoding)."""

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

LONGEST_MATCH, SHORTEST_MATCH = 4, 2  # tokens
_FIRST, _LONGEST_PAUSE = 2, 64  # tokens


def look_up(text: Tokens, count: int) -> Tokens:
    """Up to `count` tokens that once followed the end of `text` [L]; none if nothing like it came before.

    Of the earlier places that share the longest ending, of 2 to 4 tokens, the last with `count` tokens
    behind it counts, or else the first.
    """
    ends = np.flatnonzero(text[:-1] == text[-1]) if text.size else text
    matched = 1
    while matched < LONGEST_MATCH:
        longer = ends[ends >= matched]
        longer = longer[text[longer - matched] == text[-1 - matched]] if longer.size else longer
        if not longer.size:
            break
        ends, matched = longer, matched + 1
    if matched < SHORTEST_MATCH or count < 1:
        return text[:0]
    whole = ends[ends + count < text.size]
    start = 1 + int(whole[-1] if whole.size else ends[0])
    return text[start : start + count]


class Drafter:
    """Drafts for one sequence, as many and as long as it pays.

    The first is short. A draft that is right throughout makes the next one twice as long, any other as long
    as what was right of it. After one of which nothing was right comes a pause, twice as long each time in a
    row, so that text that repeats nothing is left alone.
    """

    def __init__(self, prompt: Tokens, capacity: int, longest: int) -> None:
        self._text = np.empty(capacity, np.int64)
        self._text[: prompt.size] = prompt
        self._size = prompt.size
        self._longest, self._length = longest, min(longest, _FIRST)
        self._pause = self._misses = 0

    def extend(self, token: int) -> None:
        """Note the text's next token."""
        self._text[self._size] = token
        self._size += 1
        self._pause = max(0, self._pause - 1)

    def draft(self, most: int) -> Tokens:
        """Up to `most` tokens that may come next."""
        if self._pause:
            return self._text[:0]
        return look_up(self._text[: self._size], min(most, self._length))

    def judge(self, drafted: int, accepted: int) -> None:
        """Learn from a draft of `drafted` tokens, of which the first `accepted` were right."""
        if accepted:
            self._misses = 0
            self._length = min(self._longest, 2 * drafted) if accepted == drafted else accepted
        else:
            self._misses += 1
            self._length = 1
            self._pause = min(_LONGEST_PAUSE, 2**self._misses)

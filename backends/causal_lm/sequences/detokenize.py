"""Token ids to text as they come: no half character and no piece of a stop string ever gets out."""

from collections.abc import Sequence

from tokenizers import Tokenizer

_REPLACEMENT = "\ufffd"
_LONGEST_PART = 3  # an unfinished UTF-8 character has at most three bytes


class Detokenizer:
    """Decodes one sequence incrementally; the pieces joined are the decoding of the whole.

    A window of tokens is decoded again with each that comes, behind the tokens before it, because a decoder
    may treat the first token apart (a leading space). It closes when its text ends in a whole character.
    Special tokens are not shown.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._before: list[int] = []
        self._before_length = 0
        self._window: list[int] = []
        self._given = 0

    def push(self, *tokens: int) -> str:
        """The text that `tokens` complete, sometimes empty."""
        self._window += tokens
        text = self._text()
        held = len(text) - len(text.rstrip(_REPLACEMENT))
        piece = self._give(text, len(text) - min(held, _LONGEST_PART))
        if not held and text:
            self._close()
        return piece

    def flush(self) -> str:
        """What was held back, as it stands: the sequence has ended."""
        text = self._text()
        return self._give(text, len(text))

    def _text(self) -> str:
        """The window's text."""
        ids = self._before + self._window
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))[self._before_length :]

    def _give(self, text: str, end: int) -> str:
        piece = text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _close(self) -> None:
        self._before = self._window
        self._before_length = len(self._tokenizer.decode(self._before, skip_special_tokens=True))
        self._window, self._given = [], 0


class StopStrings:
    """Cuts text before the first stop string to be complete; of those that end together, the longest.

    False where there are none.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._longest = max(map(len, stops), default=0)
        self._held = ""

    def __bool__(self) -> bool:
        return bool(self._stops)

    def push(self, piece: str) -> tuple[str, str]:
        """The text that is safe to show, and the stop string that ended it or an empty string."""
        if not self._stops or not piece:
            return piece, ""
        text = self._held + piece
        # (end, start) of each stop's first occurrence: ordered by who completes first, then by length.
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := text.find(stop)) >= 0]
        if found:
            _, start, stop = min(found)
            self._held = ""
            return text[:start], stop
        safe = self._safe(text)
        self._held = text[safe:]
        return text[:safe], ""

    def flush(self) -> str:
        """The held text: no stop string came of it."""
        held, self._held = self._held, ""
        return held

    def _safe(self, text: str) -> int:
        """How much of `text` no stop string can begin in."""
        for start in range(max(0, len(text) - self._longest + 1), len(text)):
            if any(stop.startswith(text[start:]) for stop in self._stops):
                return start
        return len(text)

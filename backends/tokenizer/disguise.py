"""Keeps the client's words from being read as control tokens.

A template joins control tokens and content into one string, so content that spells `<|im_end|>` would end
the turn. Each character of the client's that could begin a control token is swapped for a stand-in before
rendering; what spells a control token afterwards is the template's own.
"""

import re
from collections.abc import Collection
from typing import Any

from backends.tokenizer.json_input import RESERVED_FIRST

# The upper half of the reserved range; the encoder's aliases use the lower.
STAND_INS = "".join(chr(RESERVED_FIRST + 16 + index) for index in range(16))


class Disguise:
    """The stand-ins for one set of control tokens and one template.

    Text that the template itself looks for in content (`</think>`, say) keeps its form and is still found,
    unless it could be part of a control token. Raises ValueError for more than 16 first characters.
    """

    def __init__(self, control_tokens: Collection[str], template_literals: Collection[str]) -> None:
        firsts = sorted({token[0] for token in control_tokens})
        if len(firsts) > len(STAND_INS):
            raise ValueError(
                f"the control tokens begin with {len(firsts)} characters, at most 16 are supported"
            )
        harmless = [text for text in template_literals if text and not touches(text, control_tokens)]
        self._stand_ins = dict(zip(firsts, STAND_INS, strict=False))
        self._pattern = any_of([*harmless, *firsts])
        self._originals = str.maketrans({stand_in: first for first, stand_in in self._stand_ins.items()})

    def put_on(self, text: str) -> str:
        """What the template gets to see of the client's text; as long as the text itself."""
        return self._pattern.sub(lambda found: self._stand_ins.get(found[0], found[0]), text)

    def put_on_all(self, value: Any) -> Any:
        """Every string in a value of JSON, keys too."""
        if isinstance(value, str):
            return self.put_on(value)
        if isinstance(value, list):
            return [self.put_on_all(item) for item in value]
        if isinstance(value, dict):
            return {self.put_on(key): self.put_on_all(item) for key, item in value.items()}
        return value

    def take_off(self, text: str) -> str:
        return text.translate(self._originals)


def touches(text: str, control_tokens: Collection[str]) -> bool:
    """Whether a control token could begin anywhere in the text, be it cut off by the text's end."""
    return any(
        token.startswith(text[start:]) or text.startswith(token, start)
        for token in control_tokens
        for start in range(len(text))
    )


def any_of(texts: Collection[str]) -> re.Pattern[str]:
    """Matches the longest of the texts; of none, nothing."""
    return re.compile("|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True)) or r"(?!)")

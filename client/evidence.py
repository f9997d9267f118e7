"""Evidence as it is given on the command line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from client.wire import WireError

PLACE = "{evidence}"


def read_blocks(given: Sequence[str]) -> list[str]:
    """Return each block: the text itself, or of @FILE what is in it; raises WireError."""
    return [text_of(text, "evidence") for text in given]


def text_of(given: str, field: str) -> str:
    """Return a text, or of @FILE what is in it; WireError about `field` if it can't be read."""
    return _content(Path(given[1:]), field) if given.startswith("@") else given


def with_place(prompt: str, *, beside: str | None) -> str:
    """Return the prompt, with a place for the evidence before it unless it or what is `beside` it has one."""
    return prompt if PLACE in prompt or PLACE in (beside or "") else f"{PLACE}\n\n{prompt}"


def _content(path: Path, field: str) -> str:
    try:
        return path.read_text(encoding="utf-8").rstrip("\n")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise WireError("invalid", field, f"{path} can't be read: {why}") from error

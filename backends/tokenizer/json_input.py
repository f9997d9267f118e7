"""Text and JSON inputs, as far as what they mean does not matter."""

import json
import re
from typing import Any

from backends.tokenizer.errors import PromptError

MAX_BYTES = 1 << 20
MAX_DEPTH = 64

# Unicode keeps these for a program's own use; the renderer and the encoder use them as their marks.
RESERVED_FIRST, RESERVED_LAST = 0xFDD0, 0xFDEF
FORBIDDEN = re.compile(f"[\ud800-\udfff{chr(RESERVED_FIRST)}-{chr(RESERVED_LAST)}]")


def text_from_bytes(raw: bytes, field: str) -> str:
    """Decodes one input. Raises PromptError if it is too long, not UTF-8, or holds a reserved code point."""
    if len(raw) > MAX_BYTES:
        raise PromptError(field, f"{len(raw)} bytes; at most {MAX_BYTES} are allowed")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(field, f"not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}") from None
    return checked(text, field, "the text")


def parsed_json(raw: bytes, field: str) -> Any:
    """Any JSON whose every string may be shown to a template; raises PromptError."""
    try:
        value = json.loads(text_from_bytes(raw, field))
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError(field, f"not JSON: {error}") from None
    checked_deeply(value, field, "the JSON")
    return value


def checked_deeply(value: object, field: str, where: str, depth: int = 0) -> None:
    """Raises PromptError for a reserved code point in any string, and for more than MAX_DEPTH levels."""
    if depth > MAX_DEPTH:
        raise PromptError(field, f"{where} is nested more than {MAX_DEPTH} levels deep")
    if isinstance(value, str):
        checked(value, field, where)
    elif isinstance(value, list):
        for item in value:
            checked_deeply(item, field, where, depth + 1)
    elif isinstance(value, dict):
        for key, item in value.items():
            checked(key, field, where)
            checked_deeply(item, field, where, depth + 1)


def checked(text: str, field: str, where: str) -> str:
    found = FORBIDDEN.search(text)
    if found:
        raise PromptError(field, f"{where} holds U+{ord(found[0]):04X}, which is not a character")
    return text


KINDS = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


def kind_of(value: object) -> str:
    return KINDS.get(type(value), "null")

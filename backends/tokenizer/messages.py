"""Reads the inputs `text_input` and `messages` and checks everything that a client can get wrong."""

import json
import re

from backends.tokenizer.errors import PromptError

MAX_BYTES = 1 << 20
MAX_MESSAGES = 1024

# Unicode keeps these for a program's own use; the renderer and the encoder use them as their marks.
RESERVED_FIRST, RESERVED_LAST = 0xFDD0, 0xFDEF
FORBIDDEN = re.compile(f"[\ud800-\udfff{chr(RESERVED_FIRST)}-{chr(RESERVED_LAST)}]")
ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")

Message = dict[str, str]


def text_from_bytes(raw: bytes, field: str) -> str:
    """Decodes one input. Raises PromptError if it is too long, not UTF-8, or holds a reserved code point."""
    if len(raw) > MAX_BYTES:
        raise PromptError(field, f"{len(raw)} bytes; at most {MAX_BYTES} are allowed")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise PromptError(field, f"not UTF-8: byte 0x{raw[error.start]:02x} at {error.start}") from None
    return checked(text, field, "the text")


def messages_from_json(raw: bytes) -> list[Message]:
    """Reads an array of `{"role", "content"}`, both strings. PromptError names the message at fault."""
    try:
        value = json.loads(text_from_bytes(raw, "messages"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise PromptError("messages", f"not JSON: {error}") from None
    if not isinstance(value, list):
        raise PromptError("messages", f"a JSON {kind_of(value)}; an array of messages is needed")
    if not 1 <= len(value) <= MAX_MESSAGES:
        raise PromptError("messages", f"{len(value)} messages; 1 to {MAX_MESSAGES} are allowed")
    return [message_from_json(item, index) for index, item in enumerate(value)]


def message_from_json(item: object, index: int) -> Message:
    if not isinstance(item, dict):
        raise PromptError("messages", f"message {index} is a JSON {kind_of(item)}; an object is needed")
    unknown = sorted(item.keys() - {"role", "content"})
    if unknown:
        raise PromptError(
            "messages", f"message {index} has the key {unknown[0]!r}; only role and content are known"
        )
    for key in ("role", "content"):
        if not isinstance(item.get(key), str):
            raise PromptError(
                "messages", f"message {index} needs a string as {key}, not {kind_of(item.get(key))}"
            )
        checked(item[key], "messages", f"the {key} of message {index}")
    if not ROLE.fullmatch(item["role"]):
        raise PromptError("messages", f"message {index} has the role {item['role'][:64]!r}; a word is needed")
    return {"role": item["role"], "content": item["content"]}


def checked(text: str, field: str, where: str) -> str:
    found = FORBIDDEN.search(text)
    if found:
        raise PromptError(field, f"{where} holds U+{ord(found[0]):04X}, which is not a character")
    return text


KINDS = {dict: "object", list: "array", str: "string", bool: "boolean", int: "number", float: "number"}


def kind_of(value: object) -> str:
    return KINDS.get(type(value), "null")

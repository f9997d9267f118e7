"""Reads the input `messages` and checks everything that a client can get wrong."""

import json
import re
from typing import Any

from backends.tokenizer.errors import PromptError
from backends.tokenizer.json_input import checked, checked_deeply, kind_of, text_from_bytes
from backends.tokenizer.tools import Message, calls_from_json

MAX_MESSAGES = 1024
ROLE = re.compile(r"[A-Za-z0-9_-]{1,64}")
KEYS = ("role", "content", "tool_calls", "tool_call_id", "name")


def messages_from_json(raw: bytes) -> list[Message]:
    """Reads an array of `{"role", "content"}`, both strings. PromptError names the message at fault.

    An assistant's message may have `tool_calls`, and then no content; a tool's may name the call it answers.
    """
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
    unknown = sorted(item.keys() - set(KEYS))
    if unknown:
        raise PromptError(
            "messages", f"message {index} has the key {unknown[0]!r}; known are {', '.join(KEYS)}"
        )
    calls = item.get("tool_calls")
    message = {**item, "content": "" if item.get("content") is None and calls else item.get("content")}
    for key in ("role", "content", *(key for key in ("tool_call_id", "name") if key in item)):
        checked_text(message, key, index)
    if not ROLE.fullmatch(message["role"]):
        raise PromptError(
            "messages", f"message {index} has the role {message['role'][:64]!r}; a word is needed"
        )
    if "tool_calls" in item:
        checked_deeply(calls, "messages", f"message {index}")
        message["tool_calls"] = calls_from_json(calls, f"message {index}")
    return message


def checked_text(message: dict[str, Any], key: str, index: int) -> None:
    if not isinstance(message.get(key), str):
        raise PromptError(
            "messages", f"message {index} needs a string as {key}, not {kind_of(message.get(key))}"
        )
    checked(message[key], "messages", f"the {key} of message {index}")

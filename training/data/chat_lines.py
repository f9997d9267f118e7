"""Conversations in OpenAI's form, `{"messages": [{"role": …, "content": …}, …]}`, one a line."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from training.chat import Conversation, Message, Role
from training.checkpoint import describe_errors
from training.data.choice import DataError
from training.data.text import check_plain, read_utf8

MOST_NAMED = 10  # bad lines in one message


class _Turn(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    role: Role
    content: str


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    messages: list[_Turn] = Field(min_length=1)


def read_chats(paths: Sequence[Path]) -> list[Conversation]:
    """The conversations of all files. Raises DataError naming every bad line with what is wrong there."""
    return [conversation for path in paths for conversation in _chats_of(path)]


def _chats_of(path: Path) -> list[Conversation]:
    lines = read_utf8(path).removesuffix("\n").split("\n")
    if lines == [""]:
        raise DataError(f"{path} is empty: one conversation a line is expected")
    return parse_all(map(_parse_json, lines), name=str(path), unit="line")


def _parse_json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        return DataError(f"no JSON: {error}" if line.strip() else "it is empty")
    except RecursionError:
        return DataError("no JSON: it is nested too deeply")


def parse_all(items: Iterable[Any], *, name: str, unit: str) -> list[Conversation]:
    """Each item as a conversation; an item may be the DataError met in reading it.

    Raises one DataError that names every bad item by its number from 1, the first MOST_NAMED with the reason.
    """
    conversations, wrong = [], []
    for number, item in enumerate(items, start=1):
        try:
            conversations.append(parse_conversation(item))
        except DataError as error:
            wrong.append(f"{name}, {unit} {number}: {error}")
    if wrong:
        more = [f"and {len(wrong) - MOST_NAMED} more"] if len(wrong) > MOST_NAMED else []
        raise DataError("\n".join((*wrong[:MOST_NAMED], *more)))
    return conversations


def parse_conversation(item: Any) -> Conversation:
    """`item` checked. Raises DataError: an unknown key or role, an empty turn, a system message that is not
    the first, nothing for the assistant to say."""
    if isinstance(item, DataError):
        raise item
    try:
        turns = _Line.model_validate(item).messages
    except ValidationError as error:
        raise DataError(_in_short(describe_errors(error))) from None
    for number, turn in enumerate(turns, start=1):
        _check_turn(turn, number)
    if not any(turn.role == "assistant" for turn in turns):
        raise DataError("no message is the assistant's, so there is nothing to learn")
    return Conversation(tuple(Message(turn.role, turn.content.strip()) for turn in turns))


def _check_turn(turn: _Turn, number: int) -> None:
    if not turn.content.strip():
        raise DataError(f"message {number} is empty")
    if turn.role == "system" and number > 1:
        raise DataError(f"message {number} is the system's, which can only be the first")
    check_plain(turn.content, where=f"message {number}")


def _in_short(reason: str, longest: int = 300) -> str:
    return reason if len(reason) <= longest else f"{reason[:longest]} …"

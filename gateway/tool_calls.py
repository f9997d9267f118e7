"""Reads tool calls out of an answer as it comes.

A call is `<tool_call>{"name": …, "arguments": {…}}</tool_call>`, as Qwen and Hermes write it and as the
engine's grammar has it; an answer that is nothing but JSON may be calls in the way of Llama or Mistral.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

OPEN, CLOSE = "<tool_call>", "</tool_call>"
_HEAD = re.compile(r'\n\{"name": ("(?:[^"\\]|\\.)*"), "arguments": (?=\{)')
_LONGEST_HEAD = 128


def call_head(name: str) -> str:
    """Return what stands between the mark of a call and its arguments."""
    return f'\n{{"name": {json.dumps(name)}, "arguments": '


@dataclass(frozen=True, slots=True)
class CallBegins:
    """Call `index` of an answer, and whose it is."""

    index: int
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """A piece of the arguments' JSON."""

    index: int
    text: str


Piece = str | CallBegins | Arguments
"""A piece of an answer: text beside the calls, or of a call."""


class ToolCallReader:
    """Takes an answer's text piece by piece; what turns out to be no call comes out as the text that it is.

    `num_calls` counts the calls that have begun.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._read = self._read_start
        self._held = ""
        self._depth = 0
        self._in_string = self._escaped = False
        self.num_calls = 0

    def feed(self, text: str) -> list[Piece]:
        """Return what the next piece of text brings."""
        self._held += text
        return list(self._progress())

    def finish(self) -> list[Piece]:
        """Return what was held back, since nothing follows."""
        held, self._held = self._held, ""
        if self._read == self._read_whole:
            return self._calls(held)
        if self._read == self._read_head:
            held = OPEN + held
        return [held] if held and self._read != self._read_tail else []

    def _progress(self) -> Iterator[Piece]:
        """Let the states read as long as one hands over to the next."""
        state = None
        while state != self._read:
            state = self._read
            yield from state()

    def _read_start(self) -> Iterator[Piece]:
        """The first sign tells JSON from text."""
        first = self._held.lstrip()[:1]
        if first:
            self._read = self._read_whole if first in "{[" else self._read_text
        return iter(())

    def _read_whole(self) -> Iterator[Piece]:
        return iter(())

    def _read_text(self) -> Iterator[Piece]:
        before, mark, after = self._held.partition(OPEN)
        if mark:
            self._held, self._read = after, self._read_head
        else:
            safe = len(before) - _overlap(before, OPEN)
            before, self._held = before[:safe], before[safe:]
        if before and (before.strip() or not self.num_calls):
            yield before

    def _read_head(self) -> Iterator[Piece]:
        head = _HEAD.match(self._held)
        if head and (name := json.loads(head[1])) in self._names:
            self._held, self._read = self._held[head.end() :], self._read_arguments
            self.num_calls += 1
            yield CallBegins(self.num_calls - 1, _call_id(), name)
        elif len(self._held) > _LONGEST_HEAD:
            yield OPEN + self._held
            self._held, self._read = "", self._read_text

    def _read_arguments(self) -> Iterator[Piece]:
        end = self._end_of_object()
        text, self._held = self._held[:end], self._held[end:]
        if text:
            yield Arguments(self.num_calls - 1, text)
        if self._depth == 0:
            self._read = self._read_tail

    def _read_tail(self) -> Iterator[Piece]:
        _, mark, after = self._held.partition(CLOSE)
        if mark:
            self._held, self._read = after, self._read_text
        return iter(())

    def _end_of_object(self) -> int:
        """How much of the held text belongs to the object that is open."""
        for place, sign in enumerate(self._held):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped, self._in_string = sign == "\\", sign != '"'
            elif sign == '"':
                self._in_string = True
            elif sign in "{[":
                self._depth += 1
            elif sign in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return place + 1
        return len(self._held)

    def _calls(self, text: str) -> list[Piece]:
        """An answer of nothing but JSON: calls if every part of it is one of a known tool."""
        calls = _as_calls(text)
        if not calls or any(name not in self._names for name, _ in calls):
            return [text]
        self.num_calls = len(calls)
        pieces: list[Piece] = []
        for index, (name, arguments) in enumerate(calls):
            pieces += [CallBegins(index, _call_id(), name), Arguments(index, json.dumps(arguments))]
        return pieces


def _as_calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    """Name and arguments of each call; none unless all of it is calls."""
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        return []
    calls = []
    for item in data if isinstance(data, list) else [data]:
        arguments = item.get("arguments", item.get("parameters")) if isinstance(item, dict) else None
        if not isinstance(arguments, dict) or not isinstance(item.get("name"), str):
            return []
        calls.append((item["name"], arguments))
    return calls


def _overlap(text: str, mark: str) -> int:
    """How much of the text's end may be the beginning of the mark."""
    return next(size for size in range(min(len(text), len(mark) - 1), -1, -1) if text.endswith(mark[:size]))


def _call_id() -> str:
    return f"call_{uuid4().hex[:24]}"

"""Tools that an answer may call: what is accepted, and the grammar that keeps each call well-formed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from gateway.openai_guides import Guide
from gateway.openai_messages import Body, contradiction
from gateway.tool_calls import CLOSE, OPEN, call_head

MAX_TOOLS = 128
MAX_CALLS = 16
ToolName = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,64}$")]

_NO_ARGUMENTS = {"type": "object", "properties": {}, "additionalProperties": False}
_WHITE_SPACE = r" |\n {0,16}"


class Function(Body):
    """What can be called; without `parameters` it takes none."""

    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Body):
    """A function, the only kind of tool."""

    type: Literal["function"]
    function: Function

    def on_wire(self) -> dict[str, Any]:
        """Return the tool as chat templates know it."""
        return {
            "type": "function",
            "function": self.function.model_dump(exclude_none=True, exclude={"strict"}),
        }


class NamedFunction(Body):
    """The function that must be called."""

    name: ToolName


class Choice(Body):
    """`tool_choice`: a word, or a function by its name."""

    type: Literal["none", "auto", "required", "function"]
    function: NamedFunction | None = None

    @model_validator(mode="after")
    def _function_where_it_belongs(self) -> Self:
        if (self.type == "function") != (self.function is not None):
            raise contradiction("function", "it is needed with the type function, and only there")
        return self


def _as_choice(value: Any) -> Any:
    return {"type": value} if isinstance(value, str) else value


ToolChoice = Annotated[Choice, BeforeValidator(_as_choice, json_schema_input_type=str | Choice)]


def tool_guide(tools: Sequence[Tool], choice: Choice | None, *, parallel: bool) -> Guide:
    """Return the guide in which every call that is begun is one of a known tool, to its end.

    By `auto`, the default, the answer is text or calls, with text before the first; by any other choice it
    is calls.
    """
    if choice is not None and choice.function is not None:
        tools = [tool for tool in tools if tool.function.name == choice.function.name]
    repeat = f" more{{0,{MAX_CALLS - 1}}}" if parallel else ""
    start = f"first{repeat} | TEXT" if choice is None or choice.type == "auto" else f"forced{repeat}"
    rules = [
        "%llguidance {}",
        f"start: {start}",
        "first: trigger call",
        f'trigger[lazy]: TEXT "{OPEN}"',
        f'forced: "{OPEN}" call',
        f'more: "\\n{OPEN}" call',
        "TEXT: /(.|\\n)*/",
        f"call: {' | '.join(f'call_{index}' for index in range(len(tools)))}",
    ]
    for index, tool in enumerate(tools):
        head, tail = json.dumps(call_head(tool.function.name)), json.dumps(f"}}\n{CLOSE}")
        rules += [
            f"call_{index}: {head} arguments_{index} {tail}",
            f"arguments_{index}: %json {_schema(tool)}",
        ]
    return Guide("tools", "grammar", "\n".join(rules))


def _schema(tool: Tool) -> str:
    """The parameters' schema; what the engine can't keep is refused by a strict tool, let go by another."""
    schema = (
        _NO_ARGUMENTS if tool.function.parameters is None else {"type": "object", **tool.function.parameters}
    )
    options = {"whitespace_pattern": _WHITE_SPACE, "lenient": not tool.function.strict}
    return json.dumps({**schema, "x-guidance": options})

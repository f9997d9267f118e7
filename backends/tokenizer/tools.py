"""Tools that a model may call, the calls it made, and what they returned, in transformers' dialect.

A template that knows `tools` gets them as they are. For one that doesn't, they are written into the messages
as Qwen and Hermes write theirs, so that any chat model can be asked.
"""

import json
import re
from collections.abc import Sequence, Set
from typing import Any

from backends.tokenizer.errors import PromptError
from backends.tokenizer.json_input import checked_deeply, kind_of, parsed_json

MAX_TOOLS = 128
NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
Tool = dict[str, Any]
Message = dict[str, Any]

_INTRODUCTION = """\
# Tools

You may call one or more functions to assist with the user query.

You are provided with function signatures within <tools></tools> XML tags:
<tools>
{tools}
</tools>

For each function call, return a json object with function name and arguments within <tool_call></tool_call> XML tags:
<tool_call>
{{"name": <function-name>, "arguments": <args-json-object>}}
</tool_call>"""  # noqa: E501 - the words that models were trained on


def tools_from_json(raw: bytes) -> list[Tool]:
    """Read an array of `{"type": "function", "function": {"name", "description"?, "parameters"?}}`.

    Raises PromptError that names the tool at fault.
    """
    value = parsed_json(raw, "tools")
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TOOLS:
        raise PromptError("tools", f"an array of 1 to {MAX_TOOLS} tools is needed")
    for index, tool in enumerate(value):
        _check_function(tool, f"tool {index}", "tools", optional={"description", "parameters", "strict"})
        parameters = tool["function"].get("parameters", {})
        if not isinstance(parameters, dict):
            raise PromptError(
                "tools", f"tool {index} needs an object as parameters, not {kind_of(parameters)}"
            )
    return value


def calls_from_json(value: object, where: str) -> list[dict[str, Any]]:
    """Check a message's `tool_calls`; the arguments, JSON as clients send it, become objects."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_TOOLS:
        raise PromptError("messages", f"{where} needs an array of 1 to {MAX_TOOLS} tool_calls")
    return [_call(call, f"tool call {index} of {where}") for index, call in enumerate(value)]


def _call(call: Any, where: str) -> dict[str, Any]:
    _check_function(call, where, "messages", optional={"arguments"}, beside={"id"})
    function = call["function"]
    arguments = function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError) as error:
            raise PromptError("messages", f"the arguments of {where} are not JSON: {error}") from None
        checked_deeply(arguments, "messages", f"the arguments of {where}")
    if not isinstance(arguments, dict):
        raise PromptError(
            "messages", f"the arguments of {where} are {kind_of(arguments)}; an object is needed"
        )
    return {**call, "type": "function", "function": {"name": function["name"], "arguments": arguments}}


def _check_function(
    item: Any, where: str, field: str, *, optional: Set[str], beside: Set[str] = frozenset()
) -> None:
    """Whether an item is `{"type": "function", "function": {"name", …}}` and nothing else."""
    if not isinstance(item, dict) or not isinstance(item.get("function"), dict):
        raise PromptError(field, f"{where} is no object with a function")
    if item.get("type", "function") != "function":
        raise PromptError(field, f"{where} has the type {str(item['type'])[:64]!r}; only function is known")
    unknown = sorted(item.keys() - {"type", "function"} - beside) + sorted(
        item["function"].keys() - {"name"} - optional
    )
    if unknown:
        raise PromptError(field, f"{where} has the key {unknown[0]!r}, which is not known")
    name = item["function"].get("name")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise PromptError(field, f"{where} needs a name of letters, digits, _, . and -, up to 64")


def written_out(messages: Sequence[Message], tools: Sequence[Tool] | None) -> list[Message]:
    """The conversation in roles and contents alone, for a template that doesn't know tools."""
    plain: list[Message] = []
    for message in messages:
        if message["role"] != "tool":
            plain.append({"role": message["role"], "content": _with_calls(message)})
            continue
        response = f"<tool_response>\n{message['content']}\n</tool_response>"
        if plain and plain[-1].get("responds"):
            plain[-1]["content"] += f"\n{response}"
        else:
            plain.append({"role": "user", "content": response, "responds": True})
    contents = [{"role": message["role"], "content": message["content"]} for message in plain]
    return _introduced(contents, tools) if tools else contents


def _with_calls(message: Message) -> str:
    calls = [
        f"<tool_call>\n{json.dumps(call['function'], ensure_ascii=False)}\n</tool_call>"
        for call in message.get("tool_calls", ())
    ]
    return "\n".join(filter(None, [message["content"], *calls]))


def _introduced(messages: list[Message], tools: Sequence[Tool]) -> list[Message]:
    """The tools at the end of the system's message, which begins the conversation."""
    listed = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    text = _INTRODUCTION.format(tools=listed)
    if messages[0]["role"] != "system":
        return [{"role": "system", "content": text}, *messages]
    return [{"role": "system", "content": f"{messages[0]['content']}\n\n{text}"}, *messages[1:]]

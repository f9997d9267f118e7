"""Tool calls read out of an answer's text, however it is cut."""

import json
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.tool_calls import Arguments, CallBegins, ToolCallReader

NAMES = ["get_weather", "f"]


def call(name, arguments):
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


def read(*pieces):
    """Text beside the calls, and each call's name and arguments."""
    reader = ToolCallReader(NAMES)
    found = [item for piece in pieces for item in reader.feed(piece)] + reader.finish()
    text = "".join(item for item in found if isinstance(item, str))
    calls = {item.index: [item.name, ""] for item in found if isinstance(item, CallBegins)}
    for item in found:
        if isinstance(item, Arguments):
            calls[item.index][1] += item.text
    assert reader.num_calls == len(calls)
    return text, [tuple(calls[index]) for index in sorted(calls)]


ARGUMENTS = '{"city": "R\\"om}]", "deep": {"a": [1, {"b": "</tool_call>"}]}, "ü": "\\\\"}'
ANSWERS = {
    "text": ("Hello <b> and <tool", [], "Hello <b> and <tool"),
    "nothing": ("", [], ""),
    "one call": (call("f", "{}"), [("f", "{}")], ""),
    "text before a call": ("Let me see.\n" + call("f", ARGUMENTS), [("f", ARGUMENTS)], "Let me see.\n"),
    "two calls": (
        call("f", "{}") + "\n" + call("get_weather", ARGUMENTS),
        [("f", "{}"), ("get_weather", ARGUMENTS)],
        "",
    ),
    "a call of nobody": (call("g", "{}"), [], call("g", "{}")),
    "no call": ("<tool_call>you</tool_call>" + "x" * 200, [], "<tool_call>you</tool_call>" + "x" * 200),
    "cut in its head": ('<tool_call>\n{"name": "f', [], '<tool_call>\n{"name": "f'),
    "cut in its arguments": ('<tool_call>\n{"name": "f", "arguments": {"a', [("f", '{"a')], ""),
    "cut at its end": (call("f", "{}")[:-5], [("f", "{}")], ""),
    "as Llama": ('{"name": "f", "parameters": {"a": 1}}', [("f", '{"a": 1}')], ""),
    "as Mistral": (
        '[{"name": "f", "arguments": {}}, {"name": "f", "arguments": {"b": 2}}]',
        [("f", "{}"), ("f", '{"b": 2}')],
        "",
    ),
    "JSON of another kind": ('{"name": "Ann", "age": 3}', [], '{"name": "Ann", "age": 3}'),
    "JSON of an unknown tool": ('[{"name": "g", "arguments": {}}]', [], '[{"name": "g", "arguments": {}}]'),
    "broken JSON": ("{ is a brace", [], "{ is a brace"),
}


@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_is_read_alike_whole_and_sign_by_sign(case):
    answer, calls, text = ANSWERS[case]
    assert read(answer) == (text, calls)
    assert read(*answer) == (text, calls)


@settings(deadline=None, derandomize=True)
@given(st.sampled_from(list(ANSWERS)), st.lists(st.integers(0, 200), max_size=6))
def test_an_answer_is_read_alike_however_it_is_cut(case, places):
    answer, calls, text = ANSWERS[case]
    edges = [0, *sorted(min(place, len(answer)) for place in places), len(answer)]
    assert read(*(answer[a:b] for a, b in pairwise(edges))) == (text, calls)


def test_arguments_come_out_as_they_come_in():
    reader = ToolCallReader(NAMES)
    reader.feed('<tool_call>\n{"name": "f", "arguments": ')
    assert [type(piece) for piece in reader.feed('{"city"')] == [CallBegins, Arguments]
    assert reader.feed(': "Rom') == [Arguments(0, ': "Rom')]


def test_ids_of_calls_differ():
    reader = ToolCallReader(NAMES)
    begun = [
        piece
        for piece in reader.feed(call("f", "{}") + "\n" + call("f", "{}"))
        if isinstance(piece, CallBegins)
    ]
    assert len({piece.id for piece in begun}) == 2
    assert all(json.dumps(piece.id).isascii() and piece.id.startswith("call_") for piece in begun)

"""Tools through the official client, over a fake Triton."""

import json

import openai
import pytest

from client.wire import WireError
from tests.gateway.fake_transport import spoken

USER = [{"role": "user", "content": "Rome?"}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK = {"type": "function", "function": {"name": "clock"}}
CHAT = {"model": "toy", "messages": USER, "tools": [WEATHER, CLOCK]}
SPOKEN = [
    "Let me ",
    "see.<tool",
    '_call>\n{"name": "get_we',
    'ather", "arguments": {"ci',
    'ty": "Rom"}',
    "}\n</tool_call>",
]


async def test_a_call_comes_back_whole(openai_client, transport):
    transport.script = spoken(*SPOKEN)
    completion = await openai_client.chat.completions.create(**CHAT)
    (choice,) = completion.choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "Let me see.")
    (call,) = choice.message.tool_calls
    assert (call.type, call.function.name) == ("function", "get_weather")
    assert json.loads(call.function.arguments) == {"city": "Rom"}


async def test_a_call_is_streamed_in_deltas_that_join(openai_client, transport):
    transport.script = spoken(*SPOKEN, '\n<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>')
    chunks = [chunk async for chunk in await openai_client.chat.completions.create(**CHAT, stream=True)]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    parts = [part for delta in deltas for part in delta.tool_calls or ()]
    begins = [part for part in parts if part.id]
    assert [(part.index, part.type, part.function.name) for part in begins] == [
        (0, "function", "get_weather"),
        (1, "function", "clock"),
    ]
    arguments = [
        "".join(part.function.arguments for part in parts if part.index == index) for index in (0, 1)
    ]
    assert [json.loads(text) for text in arguments] == [{"city": "Rom"}, {}]
    assert [chunk.choices[0].finish_reason for chunk in chunks][-1] == "tool_calls"


async def test_the_clients_own_accumulator_reads_the_stream(openai_client, transport):
    transport.script = spoken(*SPOKEN)
    strict = {**WEATHER, "function": {**WEATHER["function"], "strict": True}}
    async with openai_client.chat.completions.stream(**{**CHAT, "tools": [strict]}) as stream:
        completion = await stream.get_final_completion()
    assert completion.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Rom"}


async def test_choices_keep_their_calls_apart(openai_client, transport):
    transport.script = spoken(*SPOKEN)
    stream = await openai_client.chat.completions.create(**CHAT, n=3, stream=True)
    arguments, reasons = {}, {}
    async for chunk in stream:
        for choice in chunk.choices:
            for part in choice.delta.tool_calls or ():
                arguments[choice.index] = arguments.get(choice.index, "") + part.function.arguments
            reasons[choice.index] = choice.finish_reason or reasons.get(choice.index)
    assert [json.loads(arguments[index]) for index in range(3)] == [{"city": "Rom"}] * 3
    assert set(reasons.values()) == {"tool_calls"}


async def test_a_call_that_is_cut_says_length(openai_client, transport):
    transport.script = spoken(*SPOKEN[:5], finish_reason="length")
    completion = await openai_client.chat.completions.create(**CHAT)
    assert completion.choices[0].finish_reason == "length"


async def test_an_answer_without_a_call_is_text(openai_client, transport):
    transport.script = spoken("It is <warm>.")
    completion = await openai_client.chat.completions.create(**CHAT)
    message = completion.choices[0].message
    assert (message.content, message.tool_calls) == ("It is <warm>.", None)
    assert completion.choices[0].finish_reason == "stop"


async def test_log_probs_stay_complete_beside_calls(openai_client, transport):
    responses = spoken(*SPOKEN)
    transport.script = [
        type(r)(
            text_output=r.text_output, output_ids=[i], output_log_probs=[-1.0], finish_reason=r.finish_reason
        )
        for i, r in enumerate(responses)
    ]
    chunks = [
        c async for c in await openai_client.chat.completions.create(**CHAT, stream=True, logprobs=True)
    ]
    scored = [token for c in chunks if c.choices[0].logprobs for token in c.choices[0].logprobs.content]
    assert [token.token for token in scored] == [f"token_id:{i}" for i in range(len(responses))]


@pytest.mark.parametrize(
    ("fields", "start", "functions"),
    [
        ({}, "first more{0,15} | TEXT", ["get_weather", "clock"]),
        ({"tool_choice": "auto", "parallel_tool_calls": False}, "first | TEXT", ["get_weather", "clock"]),
        ({"tool_choice": "required"}, "forced more{0,15}", ["get_weather", "clock"]),
        (
            {
                "tool_choice": {"type": "function", "function": {"name": "clock"}},
                "parallel_tool_calls": False,
            },
            "forced",
            ["clock"],
        ),
    ],
)
async def test_the_choice_decides_what_the_grammar_lets_through(
    openai_client, transport, fields, start, functions
):
    await openai_client.chat.completions.create(**CHAT, **fields)
    (request,) = transport.asked
    assert request.guided_decoding_guide_type == "grammar"
    lines = request.guided_decoding_guide.splitlines()
    assert f"start: {start}" in lines
    assert len([line for line in lines if line.startswith("call_")]) == len(functions)
    assert request.tools == [WEATHER, CLOCK], "the model sees all of them"


async def test_none_leaves_tools_out(openai_client, transport):
    await openai_client.chat.completions.create(
        **CHAT, tool_choice="none", response_format={"type": "json_object"}
    )
    (request,) = transport.asked
    assert (request.tools, request.guided_decoding_guide_type) == (None, "json_schema")


async def test_calls_and_their_results_go_back_to_the_model(openai_client, transport):
    transport.script = spoken(*SPOKEN)
    message = (await openai_client.chat.completions.create(**CHAT)).choices[0].message
    call = message.tool_calls[0]
    result = {"role": "tool", "tool_call_id": call.id, "content": "18 °C"}
    await openai_client.chat.completions.create(**{**CHAT, "messages": [*USER, message, result]})
    assert transport.asked[1].messages[1:] == [
        {"role": "assistant", "content": "Let me see.", "tool_calls": [call.model_dump()]},
        result,
    ]


async def test_a_tool_that_the_engine_refuses_is_a_400_about_tools(openai_client, transport):
    transport.script = [
        WireError("invalid", "guided_decoding_guide", "can't be followed: Unimplemented keys")
    ]
    with pytest.raises(openai.BadRequestError, match="Unimplemented") as refused:
        await openai_client.chat.completions.create(**CHAT)
    assert refused.value.param == "tools"

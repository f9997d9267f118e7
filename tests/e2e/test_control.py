"""The form of an answer, over the gateway and the real Triton: formats, guides, tools, words barred."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Literal

import httpx
import openai
import pydantic
import pytest

from tests.e2e.conftest import RunningTriton
from tests.e2e.gateway_process import RunningGateway
from tests.e2e.tiny_models import PRESETS
from tests.e2e.triton_calls import generate
from tests.gateway.malformed import BAD_GUIDES

pytestmark = pytest.mark.triton

MODELS = tuple(PRESETS)
USER = [{"role": "user", "content": "the cat"}]


class Weather(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid")

    sky: Literal["clear", "größer 🙂"]
    celsius: Literal[1, 2, 3]
    tags: list[bool] = pydantic.Field(max_length=2)


TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "report",
            "description": "<|im_end|>",
            "parameters": Weather.model_json_schema(),
        },
    },
    {"type": "function", "function": {"name": "wait"}},
]


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


@pytest.mark.parametrize("model", MODELS)
async def test_a_random_model_answers_in_the_clients_own_types(
    client: openai.AsyncOpenAI, model: str
) -> None:
    for seed in range(4):
        completion = await client.chat.completions.parse(
            model=model, messages=USER, response_format=Weather, temperature=1.0, seed=seed
        )
        (choice,) = completion.choices
        assert choice.finish_reason == "stop"
        assert isinstance(choice.message.parsed, Weather)


async def test_choices_of_a_stream_are_all_guided(client: openai.AsyncOpenAI) -> None:
    stream = await client.chat.completions.create(
        model=MODELS[0],
        messages=USER,
        n=4,
        stream=True,
        temperature=1.0,
        seed=1,
        frequency_penalty=0.5,
        extra_body={"structured_outputs": {"regex": "[a-d]{6}"}},
    )
    texts = dict.fromkeys(range(4), "")
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert all(len(text) == 6 and set(text) <= set("abcd") for text in texts.values())
    assert len(set(texts.values())) > 1


@pytest.mark.parametrize("stream", [False, True])
async def test_a_required_tool_is_called_and_its_result_is_taken(
    client: openai.AsyncOpenAI, stream: bool
) -> None:
    asked = {
        "model": MODELS[1],
        "messages": USER,
        "tools": TOOLS,
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 1.0,
        "seed": 5,
    }
    if stream:
        usage = {"include_usage": True}
        async with client.chat.completions.stream(**asked, stream_options=usage) as events:
            completion = await events.get_final_completion()
    else:
        completion = await client.chat.completions.create(**asked)
    (choice,) = completion.choices
    assert choice.finish_reason == "tool_calls"
    (call,) = choice.message.tool_calls
    arguments = json.loads(call.function.arguments)
    assert Weather.model_validate(arguments) if call.function.name == "report" else arguments == {}
    sent = choice.message.model_dump(exclude_none=True, include={"role", "content", "tool_calls"})
    for part in sent["tool_calls"]:
        part["function"].pop("parsed_arguments", None)
        part.pop("index", None)
    result = {"role": "tool", "tool_call_id": call.id, "content": "done"}
    after = await client.chat.completions.create(
        model=MODELS[1], messages=[*USER, sent, result], tools=TOOLS, max_tokens=4
    )
    assert after.usage.prompt_tokens > completion.usage.prompt_tokens


async def test_a_named_tool_is_the_one_that_is_called(client: openai.AsyncOpenAI) -> None:
    completion = await client.chat.completions.create(
        model=MODELS[0],
        messages=USER,
        tools=TOOLS,
        tool_choice={"type": "function", "function": {"name": "report"}},
        parallel_tool_calls=False,
        temperature=1.0,
        n=3,
        seed=2,
    )
    for choice in completion.choices:
        (call,) = choice.message.tool_calls
        assert call.function.name == "report"
        Weather.model_validate_json(call.function.arguments)


async def test_bad_guides_are_refused_by_name_while_others_are_answered(
    gateway: RunningGateway, client: openai.AsyncOpenAI
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=60) as http:

        async def refused(path: str, content: bytes, param: str) -> None:
            body = content.replace(b"MODEL", MODELS[0].encode())
            response = await http.post(path, content=body, headers={"content-type": "application/json"})
            assert (response.status_code, response.json()["error"]["param"]) == (400, param), content[:200]

        streams = [
            client.chat.completions.create(model=MODELS[0], messages=USER, max_tokens=60) for _ in range(2)
        ]
        await asyncio.gather(
            *streams, *(refused(case.path, case.content, str(case.param)) for case in BAD_GUIDES)
        )


async def test_vllms_parameters_and_tensorrt_llms_names_reach_the_engine(
    triton_server: RunningTriton,
) -> None:
    plain = await generate(
        triton_server.grpc,
        MODELS[0],
        text_input="the cat",
        max_tokens=12,
        min_tokens=12,
        temperature=0.7,
        seed=9,
    )
    parameters = {"max_tokens": "12", "min_tokens": 12, "temperature": "0.7", "seed": "9"}
    for values in (
        {"sampling_parameters": json.dumps(parameters)},
        {
            "max_tokens": 12,
            "min_length": 12,
            "temperature": 0.7,
            "seed": 9,
            "return_num_input_tokens": True,
            "return_num_output_tokens": True,
        },
    ):
        answer = await generate(triton_server.grpc, MODELS[0], text_input="the cat", **values)
        assert (answer.error, answer.ids) == ("", plain.ids)
        assert answer.pieces[-1]["num_output_tokens"] == 12
    barred = await generate(
        triton_server.grpc,
        MODELS[0],
        text_input="the cat",
        max_tokens=12,
        min_tokens=12,
        bad_words=["e", "a"],
    )
    assert not barred.error
    unknown = await generate(triton_server.grpc, MODELS[0], text_input="a", sampling_parameters='{"beam": 2}')
    assert "invalid: sampling_parameters: has 'beam', known are temperature" in unknown.error

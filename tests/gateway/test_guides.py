"""What an answer's form is asked for by, over a fake Triton: `response_format` and `structured_outputs`."""

import json

import openai
import pydantic
import pytest

from client.wire import WireError

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}
SCHEMA = {"type": "object", "properties": {"größe": {"type": "integer"}}, "required": ["größe"]}


class Answer(pydantic.BaseModel):
    city: str
    population: int


def sent(transport):
    (request,) = transport.asked
    return request.guided_decoding_guide_type, request.guided_decoding_guide


@pytest.mark.parametrize(
    ("response_format", "kind", "guide"),
    [
        ({"type": "json_object"}, "json_schema", {"type": "object"}),
        (
            {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
            "json_schema",
            SCHEMA,
        ),
        ({"type": "json_schema", "json_schema": {"name": "a"}}, "json_schema", {"type": "object"}),
    ],
)
async def test_a_response_format_becomes_a_guide(openai_client, transport, response_format, kind, guide):
    await openai_client.chat.completions.create(**CHAT, response_format=response_format)
    sent_kind, text = sent(transport)
    assert (sent_kind, json.loads(text)) == (kind, guide)


async def test_plain_text_is_no_guide(openai_client, transport):
    await openai_client.chat.completions.create(**CHAT, response_format={"type": "text"})
    assert sent(transport) == (None, None)


async def test_the_official_clients_parse_sends_the_models_schema(openai_client, transport):
    transport.script = [
        type(transport.script[0])(text_output='{"city": "Rom", "population": 3}', finish_reason="stop")
    ]
    completion = await openai_client.chat.completions.parse(**CHAT, response_format=Answer)
    assert completion.choices[0].message.parsed == Answer(city="Rom", population=3)
    assert json.loads(sent(transport)[1])["properties"].keys() == {"city", "population"}


@pytest.mark.parametrize(
    ("outputs", "kind", "text"),
    [
        ({"regex": "[ab]+"}, "regex", "[ab]+"),
        ({"choice": ["a", "ü"]}, "choice", '["a", "\\u00fc"]'),
        ({"grammar": 'start: "a"'}, "grammar", 'start: "a"'),
        ({"json": {"type": "null"}}, "json_schema", '{"type": "null"}'),
        ({"json": '{"type": "null"}'}, "json_schema", '{"type": "null"}'),
    ],
)
@pytest.mark.parametrize("endpoint", ["chat", "completions"])
async def test_structured_outputs_become_a_guide(openai_client, transport, endpoint, outputs, kind, text):
    body = {"structured_outputs": outputs}
    if endpoint == "chat":
        await openai_client.chat.completions.create(**CHAT, extra_body=body)
    else:
        await openai_client.completions.create(model="toy", prompt="Hi", extra_body=body)
    assert sent(transport) == (kind, text)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"extra_body": {"structured_outputs": {"regex": "("}}}, "structured_outputs"),
    ],
)
async def test_a_guide_that_the_engine_refuses_is_a_400_that_names_its_field(
    openai_client, transport, fields, param
):
    transport.script = [WireError("invalid", "guided_decoding_guide", "can't be followed: unclosed group")]
    with pytest.raises(openai.BadRequestError, match="unclosed group") as refused:
        await openai_client.chat.completions.create(**CHAT, **fields)
    assert refused.value.param == param


async def test_bad_words_reach_the_wire(openai_client, transport):
    await openai_client.chat.completions.create(**CHAT, extra_body={"bad_words": ["no", "never"]})
    assert transport.asked[0].bad_words == ["no", "never"]

"""What the OpenAI endpoints answer when something is wrong: statuses, events, bounds; over a fake Triton."""

import asyncio

import openai
import pytest

from client.wire import GenerateResponse, WireError
from tests.gateway.fake_transport import spoken

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}


async def test_an_unknown_model_is_404_and_lists_the_served(openai_client, transport):
    with pytest.raises(openai.NotFoundError) as caught:
        await openai_client.chat.completions.create(model="gpt-4", messages=CHAT["messages"])
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    assert "served: toy" in str(caught.value)
    assert transport.asked == []


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "status", "param", "code"),
    [
        (WireError("invalid", "stop_words", "17 strings, up to 16"), 400, "stop", "invalid_value"),
        (WireError("invalid", "input_ids", "9000 tokens, up to 8191"), 400, "messages", "invalid_value"),
        (WireError("invalid", "top_p", "2 was given"), 400, "top_p", "invalid_value"),
        (WireError("not_found", "model", "it was unloaded"), 404, "model", "model_not_found"),
        (WireError("overloaded", "queue", "64 wait"), 503, None, "overloaded"),
        (WireError("timeout", "timeout", "no turn in 5 ms"), 503, None, "timeout"),
        (WireError("unavailable", "engine", "it stops"), 503, None, "unavailable"),
        (WireError("internal", "server", "secret detail"), 500, None, "internal_error"),
        (ZeroDivisionError("secret detail"), 500, None, "internal_error"),
    ],
)
async def test_an_error_before_the_first_token_is_an_http_status(
    http, transport, *, stream, error, status, param, code
):
    transport.script = [error]
    response = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert response.status_code == status
    body = response.json()["error"]
    assert set(body) == {"message", "type", "param", "code"}
    assert (body["param"], body["code"]) == (param, code)
    assert "secret" not in response.text
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)
    assert transport.running == 0


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (WireError("unavailable", "engine", "it stops"), "unavailable"),
        (GenerateResponse(finish_reason="cancelled"), "unavailable"),
        (ZeroDivisionError("secret detail"), "internal_error"),
    ],
)
async def test_an_error_inside_a_stream_is_an_event_in_the_same_form(openai_client, transport, failure, code):
    transport.script = [*spoken("Hello")[:1], failure]
    stream = await openai_client.chat.completions.create(**CHAT, stream=True)
    with pytest.raises(openai.APIError) as caught:
        async for _ in stream:
            pass
    assert caught.value.code == code
    assert "secret" not in str(caught.value)
    assert transport.running == 0


async def test_one_failing_choice_stops_the_others(openai_client, transport):
    forever, calls = transport.generate, []

    async def one_fails(model, request, *, request_id=None):
        calls.append(request_id)
        if len(calls) == 2:
            raise WireError("overloaded", "queue", "64 wait")
        async for response in forever(model, request, request_id=request_id):
            yield response

    transport.generate, transport.script = one_fails, [asyncio.Event()]
    with pytest.raises(openai.InternalServerError) as caught:
        await openai_client.chat.completions.create(**CHAT, n=3)
    assert caught.value.status_code == 503
    assert (transport.running, transport.cancelled) == (0, 2)


async def test_beyond_the_bound_requests_are_refused_at_once_and_the_bound_frees_again(
    openai_client, http, transport, settings
):
    release = asyncio.Event()
    transport.script = [release, *spoken("Hello")]
    running = [
        asyncio.create_task(openai_client.chat.completions.create(**CHAT))
        for _ in range(settings.max_running)
    ]
    async with asyncio.timeout(5):
        while transport.running < settings.max_running:
            await asyncio.sleep(0.01)
    refused = await http.post("/v1/chat/completions", json=CHAT)
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    release.set()
    assert len(await asyncio.gather(*running)) == settings.max_running
    assert (await http.post("/v1/chat/completions", json=CHAT)).status_code == 200

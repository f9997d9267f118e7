"""What becomes of the work when its client goes, when it fails, and when others cancel it."""

import asyncio
import gc
import json

import pytest
from starlette.requests import ClientDisconnect

from client.wire import GenerateRequest
from gateway.generation import Choice, Choices, side_by_side, unless_disconnected
from tests.gateway.fake_transport import FakeTransport, spoken

GONE = {"type": "http.disconnect"}


async def stays():
    await asyncio.Event().wait()


def goes_when(event):
    async def receive():
        await event.wait()
        return GONE

    return receive


async def test_the_result_comes_through_and_nothing_is_cancelled_later():
    event = asyncio.Event()
    assert await unless_disconnected(goes_when(event), asyncio.sleep(0, "done")) == "done"
    event.set()
    await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_the_clients_message_is_no_leaving():
    messages = iter([{"type": "http.request", "body": b"", "more_body": False}])

    async def receive():
        return next(messages, None) or await stays()

    assert await unless_disconnected(receive, asyncio.sleep(0.01, "done")) == "done"


async def test_the_works_own_error_comes_through():
    with pytest.raises(KeyError):
        await unless_disconnected(stays, fail())


async def fail():
    await asyncio.sleep(0)
    raise KeyError("ours")


async def test_a_client_that_goes_cancels_the_work_and_leaves_the_task_usable():
    event, ended = asyncio.Event(), []

    async def work():
        try:
            event.set()
            await stays()
        finally:
            await asyncio.sleep(0.01)
            ended.append("cleaned up")

    with pytest.raises(ClientDisconnect):
        await unless_disconnected(goes_when(event), work())
    assert ended == ["cleaned up"]
    assert asyncio.current_task().cancelling() == 0


async def test_an_error_while_the_work_is_cancelled_does_not_hide_that_the_client_has_gone():
    event = asyncio.Event()

    async def work():
        event.set()
        try:
            await stays()
        finally:
            raise KeyError("while stopping")

    with pytest.raises(ClientDisconnect):
        await unless_disconnected(goes_when(event), work())


async def test_being_cancelled_by_others_is_not_taken_for_the_clients_leaving():
    serving = asyncio.create_task(unless_disconnected(stays, stays()))
    await asyncio.sleep(0.01)
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving


@pytest.mark.parametrize("count", [1, 2])
async def test_one_generation_and_several_are_the_same_stream(count):
    transports = [FakeTransport(spoken("a", "b")) for _ in range(count)]
    request = GenerateRequest(text_input="Hi", stream=True)
    merged = side_by_side([each.generate("toy", request) for each in transports])
    assert isinstance(merged, Choice if count == 1 else Choices)
    await merged.start()
    said = {}
    async for index, response in merged:
        said[index] = said.get(index, "") + response.text_output
    await merged.close()
    assert said == dict.fromkeys(range(count), "ab")
    assert [each.running for each in transports] == [0] * count


async def test_a_chat_leaves_no_cycle_for_the_garbage_collector(app):
    """The gateway's process has it look rarely (`__main__.py`), which is right for as long as this holds."""
    for _ in range(3):
        await chat(app)
    gc.collect()
    gc.disable()
    try:
        for _ in range(10):
            await chat(app)
        assert gc.collect() == 0
    finally:
        gc.enable()


async def chat(app):
    """One request as a server hands it over: a client makes cycles of its own."""
    answered, status = asyncio.Event(), []
    body = json.dumps({"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive():
        if messages:
            return messages.pop()
        await answered.wait()
        return GONE

    async def send(message):
        status.append(message.get("status"))
        if message["type"] == "http.response.body":
            answered.set()

    headers = [(b"content-type", b"application/json")]
    path = "/v1/chat/completions"
    await app(
        {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""},
        receive,
        send,
    )
    assert status[0] == 200

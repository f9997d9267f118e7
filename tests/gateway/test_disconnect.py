"""Clients that leave, and clients that do not read: over a real uvicorn."""

import asyncio
import json

import pytest

from client.wire import GenerateResponse
from tests.gateway.fake_transport import spoken

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}


async def post(address, body):
    reader, writer = await asyncio.open_connection(*address)
    content = json.dumps(body).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: gateway\r\ncontent-type: application/json\r\n"
    writer.write(f"{head}content-length: {len(content)}\r\n\r\n".encode() + content)
    await writer.drain()
    return reader, writer


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("n", [1, 3])
async def test_leaving_before_the_first_token_cancels_the_generations(address, transport, stream, n):
    transport.script = [asyncio.Event()]
    _, writer = await post(address, {**CHAT, "stream": stream, "n": n})
    await until(lambda: transport.running == n)
    writer.close()
    await until(lambda: transport.running == 0)
    assert transport.cancelled == n


@pytest.mark.parametrize("n", [1, 3])
async def test_leaving_in_mid_stream_cancels_the_generations(address, transport, n):
    transport.script = [*spoken("a", "b")[:2], asyncio.Event()]
    reader, writer = await post(address, {**CHAT, "stream": True, "n": n})
    await reader.readuntil(b'"content":"b"')
    assert transport.running == n
    writer.close()
    await until(lambda: transport.running == 0)
    assert transport.cancelled == n


async def test_leaving_is_logged_and_counted(address, transport, logs):
    transport.script = [*spoken("a")[:1], asyncio.Event()]
    reader, writer = await post(address, {**CHAT, "stream": True})
    await reader.readuntil(b'"content":"a"')
    writer.close()
    await until(lambda: [entry for entry in logs if entry["event"] == "request" and entry["disconnected"]])


async def test_a_reader_that_stands_still_holds_back_the_generation(address, transport):
    piece = GenerateResponse(text_output="x" * 10_000, output_ids=[1])
    transport.script = [piece] * 5_000
    _, writer = await post(address, {**CHAT, "stream": True})
    await until(lambda: transport.given > 5)
    previous = -1
    while previous != transport.given:
        previous = transport.given
        await asyncio.sleep(0.3)
    assert transport.given < 2_000, "50 MB were on offer; only the sockets' buffers may be filled"
    writer.close()
    await until(lambda: transport.running == 0)

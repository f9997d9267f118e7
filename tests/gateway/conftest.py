import asyncio
import socket

import httpx
import openai
import pytest
import uvicorn

from gateway.app import create_app
from gateway.settings import Settings
from tests.gateway.fake_transport import FakeTransport


@pytest.fixture
def transport():
    return FakeTransport()


@pytest.fixture
def settings():
    return Settings(max_body_bytes=64 * 1024, max_running=24)


@pytest.fixture
async def address(settings, transport):
    """The gateway on a real uvicorn, so that disconnects and back-pressure are real."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(create_app(settings, transport), log_config=None, access_log=False)
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield "http://{}:{}".format(*listener.getsockname())
    server.should_exit = True
    await serving
    assert transport.closed


@pytest.fixture
async def http(address):
    async with httpx.AsyncClient(base_url=address, timeout=10) as client:
        yield client


@pytest.fixture
async def openai_client(address):
    async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client

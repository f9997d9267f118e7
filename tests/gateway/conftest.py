import asyncio
import socket
from contextlib import nullcontext

import httpx
import httpx2
import openai
import pytest
import structlog
import uvicorn

from gateway.app import create_app
from gateway.settings import Settings
from tests.gateway.fake_transport import FakeTransport


@pytest.fixture(autouse=True)
def logs():
    with structlog.testing.capture_logs() as captured:
        yield captured


@pytest.fixture
def transport():
    return FakeTransport()


@pytest.fixture
def settings():
    return Settings(max_body_bytes=64 * 1024, max_running=24)


@pytest.fixture
def app(settings, transport):
    return create_app(settings, transport)


@pytest.fixture
async def http(app):
    async with httpx.AsyncClient(base_url="http://gateway", transport=httpx.ASGITransport(app)) as client:
        yield client


@pytest.fixture
async def openai_client(app):
    inner = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    async with openai.AsyncOpenAI(
        base_url="http://gateway/v1", api_key="none", max_retries=0, http_client=inner
    ) as client:
        yield client


@pytest.fixture
async def address(app, transport):
    """The gateway on a real uvicorn, where disconnects and back-pressure are real."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False))
    # It would put back a handler of Ctrl-C that belongs to a loop long closed.
    server.capture_signals = nullcontext
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    yield listener.getsockname()
    server.should_exit = True
    await serving
    assert transport.closed

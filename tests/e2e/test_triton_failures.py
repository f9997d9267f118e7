"""What fails over the real server fails alone, and readiness tells what can't answer any more."""

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.conftest import RunningTriton, running_triton
from tests.e2e.gateway_process import running_gateway
from tests.e2e.sick_model import SICK, SICKENING, write_sick_model
from tests.e2e.tiny_models import PRESETS
from tests.e2e.triton_calls import generate
from tests.ports import free_ports

pytestmark = [pytest.mark.triton, pytest.mark.slow]

PROMPT = "the cat sat on the mat and the dog ran to the cat, then they ate. " * 8


@asynccontextmanager
async def readiness(triton: RunningTriton) -> AsyncIterator[httpx.AsyncClient]:
    """The gateway in front of a server that is ready; `GET /readyz` tells."""
    (port,) = free_ports(1)
    with running_gateway(port, triton.grpc) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=30) as client:
            yield client


@pytest.fixture
def triton_over_a_full_disk(
    tiny_repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RunningTriton]:
    """A server whose session directories have gone to a device that is full."""
    monkeypatch.setenv("CAUSAL_LM_SESSION_DIRECTORY", str(tmp_path))
    with running_triton(tiny_repository) as triton:
        for model in PRESETS:
            shutil.rmtree(tmp_path / model)
            (tmp_path / model).symlink_to("/dev/full")
        yield triton


async def test_a_poisoned_request_fails_alone_and_three_in_a_row_take_the_model_off(tmp_path: Path) -> None:
    write_sick_model(tmp_path)
    words = {"max_tokens": 60, "min_tokens": 60}
    with running_triton(tmp_path) as triton:
        async with readiness(triton) as client:
            for _ in range(2):
                *others, poisoned = await asyncio.gather(
                    *(generate(triton.grpc, SICK, input_ids=[first], **words) for first in (0, 1, 3)),
                    generate(triton.grpc, SICK, input_ids=[SICKENING], **words),
                )
                assert "internal: engine: " in poisoned.error
                assert [(answer.error, len(answer.ids)) for answer in others] == [("", 60)] * 3
            assert (await client.get("/readyz")).json()["models"] == {SICK: "ready"}
            for _ in range(3):
                await generate(triton.grpc, SICK, input_ids=[SICKENING])
            async with asyncio.timeout(20):
                while (await client.get("/readyz")).status_code == 200:
                    await asyncio.sleep(0.1)
            assert (await client.get("/readyz")).json()["models"].get(SICK) != "ready"


@pytest.mark.parametrize("model", PRESETS)
async def test_a_disk_that_takes_nothing_more_costs_no_answer(
    triton_over_a_full_disk: RunningTriton, model: str
) -> None:
    words = {"max_tokens": 8, "min_tokens": 8, "seed": 3, "temperature": 1.0}
    url = triton_over_a_full_disk.grpc
    plain = await generate(url, model, text_input=PROMPT, **words)
    for _ in range(2):
        asked = await generate(url, model, text_input=PROMPT, session_id="talk", **words)
        assert (asked.error, asked.ids) == ("", plain.ids)
    async with readiness(triton_over_a_full_disk) as client:
        assert (await client.get("/readyz")).status_code == 200

"""The official `openai` client over the gateway and the real Triton."""

import asyncio
import random
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import httpx
import openai
import psutil
import pytest

from tests.e2e.conftest import RunningTriton
from tests.e2e.gateway_process import RunningGateway
from tests.e2e.tiny_models import MAX_LENGTH
from tests.e2e.triton_calls import until_metric
from tests.gateway.malformed import MALFORMED

pytestmark = pytest.mark.triton

MODELS = ["tiny-attention", "tiny-retention"]
QUEUE = 64
MEBIBYTE = 2**20


@dataclass
class Streamed:
    """What one stream brought."""

    pieces: list[str] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    ids: set[str] = field(default_factory=set)

    @property
    def text(self) -> str:
        return "".join(self.pieces)


@pytest.fixture
async def client(gateway: RunningGateway) -> AsyncIterator[openai.AsyncOpenAI]:
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key="none", max_retries=0, timeout=120
    ) as client:
        yield client


async def stream(
    client: openai.AsyncOpenAI, model: str, seed: int, *, tokens: int = 48, stop: list[str] | None = None
) -> Streamed:
    """A sampled chat answer, read to its end."""
    seen = Streamed()
    chunks = await client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": f"Tell me {seed} things 🦊 about 東京."}],
        stream=True,
        seed=seed,
        temperature=1.0,
        max_tokens=tokens,
        stop=stop if stop is not None else openai.omit,
    )
    async for chunk in chunks:
        seen.ids.add(chunk.id)
        (choice,) = chunk.choices
        if choice.delta.content:
            seen.pieces.append(choice.delta.content)
        if choice.finish_reason:
            seen.finish_reasons.append(choice.finish_reason)
    return seen


@pytest.mark.parametrize("model", MODELS)
async def test_the_same_seed_gives_the_same_text_alone_and_among_sixteen(
    client: openai.AsyncOpenAI, model: str
) -> None:
    alone = [await stream(client, model, seed) for seed in range(4)]
    crowd = await asyncio.gather(*(stream(client, model, seed) for seed in range(16)))
    assert [seen.text for seen in crowd[:4]] == [seen.text for seen in alone]
    assert len({seen.text for seen in crowd}) > 12, "seeds must matter"


async def test_every_stream_of_a_crowd_ends_once_under_one_id(client: openai.AsyncOpenAI) -> None:
    crowd = await asyncio.gather(*(stream(client, MODELS[seed % 2], seed) for seed in range(16)))
    assert [len(seen.finish_reasons) for seen in crowd] == [1] * 16
    assert [len(seen.ids) for seen in crowd] == [1] * 16


async def test_no_piece_shows_half_a_character_that_the_text_has_whole(client: openai.AsyncOpenAI) -> None:
    """Random weights write whole and broken characters; a piece may break only where the text does."""
    for seed in range(8):
        seen = await stream(client, "tiny-attention", seed, tokens=200)
        whole = await client.chat.completions.create(
            model="tiny-attention",
            messages=[{"role": "user", "content": f"Tell me {seed} things 🦊 about 東京."}],
            seed=seed,
            temperature=1.0,
            max_tokens=200,
        )
        assert seen.text == whole.choices[0].message.content


async def test_a_stop_string_is_neither_shown_nor_split(client: openai.AsyncOpenAI) -> None:
    text = (await stream(client, "tiny-attention", 3, tokens=120)).text
    for start in (5, len(text) // 2, len(text) - 8):
        word = text[start : start + 4]
        stopped = await stream(client, "tiny-attention", 3, tokens=120, stop=[word])
        assert stopped.text == text[: text.index(word)]
        assert stopped.finish_reasons == ["stop"]


async def test_two_hundred_clients_that_leave_at_random_leave_nothing_running(
    client: openai.AsyncOpenAI, triton_server: RunningTriton
) -> None:
    generator = random.Random(7)

    async def leave(seed: int) -> None:
        try:
            async with asyncio.timeout(generator.uniform(0.0, 0.6)):
                await stream(client, MODELS[seed % 2], seed, tokens=MAX_LENGTH // 2)
        except (TimeoutError, openai.APIStatusError):
            return

    async def until_none_is_left() -> float:
        start = time.monotonic()
        for model in MODELS:
            await until_metric(triton_server.metrics, "num_requests_running", f"{model}_engine", equals=0)
            await until_metric(triton_server.metrics, "num_requests_waiting", f"{model}_engine", equals=0)
        return time.monotonic() - start

    seconds = []
    for wave in range(4):
        await asyncio.gather(*(leave(50 * wave + index) for index in range(50)))
        seconds.append(await until_none_is_left())
    assert min(seconds) < 1, "other work may hold up one wave, not each of them"
    assert (await stream(client, "tiny-attention", 1)).finish_reasons


async def test_ten_times_the_queue_is_answered_or_refused_and_memory_returns(
    gateway: RunningGateway, triton_server: RunningTriton
) -> None:
    body = {"model": "tiny-attention", "prompt": "the cat", "max_tokens": 32}
    limits = httpx.Limits(max_connections=10 * QUEUE)
    async with httpx.AsyncClient(trust_env=False, limits=limits, timeout=120) as http:

        async def ask() -> httpx.Response:
            return await http.post(f"{gateway.url}/v1/completions", json=body)

        async def flood() -> list[httpx.Response]:
            return await asyncio.gather(*(ask() for _ in range(10 * QUEUE)))

        await flood()
        before = resident(gateway.pid) + resident(triton_server.server.pid)
        answers = await flood()
        after = resident(gateway.pid) + resident(triton_server.server.pid)
    assert {answer.status_code for answer in answers} == {200, 503}
    refused = [answer for answer in answers if answer.status_code == 503]
    assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
    assert all(answer.json()["error"]["code"] == "overloaded" for answer in refused)
    assert after - before < 48 * MEBIBYTE, "a flood like the one before needs no new memory"


def resident(pid: int) -> int:
    """Resident bytes of a process and all below it."""
    process = psutil.Process(pid)
    return sum(member.memory_info().rss for member in (process, *process.children(recursive=True)))


async def test_malformed_requests_name_the_field_and_the_server_lives(
    gateway: RunningGateway, client: openai.AsyncOpenAI
) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=60) as http:
        for case in MALFORMED:
            content = case.content.replace(b"MODEL", b"tiny-attention")
            response = await http.post(case.path, content=content, headers=case.headers)
            assert (response.status_code, response.json()["error"]["param"]) == (case.status, case.param), (
                content
            )
    assert (await stream(client, "tiny-attention", 1)).finish_reasons


async def test_a_prompt_beyond_the_context_is_a_400_that_names_it(client: openai.AsyncOpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as refused:
        await client.chat.completions.create(
            model="tiny-attention", messages=[{"role": "user", "content": "cat " * MAX_LENGTH}]
        )
    assert refused.value.param == "messages"
    assert str(MAX_LENGTH) in refused.value.message

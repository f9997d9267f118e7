"""Requests that end early, and more requests than there is room for."""

import asyncio
from collections import Counter

import pytest

from tests.e2e.conftest import RunningTriton
from tests.e2e.tiny_models import MAX_LENGTH
from tests.e2e.triton_calls import Answer, collect, generate, metric, responses, until_metric

pytestmark = pytest.mark.triton

MODEL = "tiny-attention"
ENGINE = f"{MODEL}_engine"
LONG = MAX_LENGTH - 8
SLOTS, QUEUE = 16, 64


async def start(triton: RunningTriton, model: str, request_id: str, **values: object) -> asyncio.Task[Answer]:
    """Starts a stream and returns once its first piece is there."""
    first = asyncio.Event()

    async def read() -> Answer:
        answer = Answer()
        async for result, error in responses(triton.grpc, model, request_id, stream=True, **values):
            collect(answer, result, error)
            first.set()
        return answer

    task = asyncio.create_task(read())
    await asyncio.wait([task, waiter := asyncio.create_task(first.wait())], return_when="FIRST_COMPLETED")
    waiter.cancel()
    return task


def long(tokens: int = LONG) -> dict[str, object]:
    """A request of exactly so many tokens, by default seconds of work: its end is barred."""
    return {"text_input": "the cat", "max_tokens": tokens, "min_tokens": tokens, "temperature": 1.0}


async def test_stop_by_id_ends_a_stream_of_the_ensemble(triton_server: RunningTriton) -> None:
    before = await metric(triton_server.metrics, "requests_cancelled_total", ENGINE)
    running = await start(triton_server, MODEL, "to-be-stopped", **long())
    stopping = await generate(triton_server.grpc, ENGINE, "to-be-stopped", stop=True)
    answer = await running
    assert (stopping.pieces, stopping.error, stopping.finals) == ([], "", 1)
    assert (answer.finish_reason, answer.finals) == ("cancelled", 1)
    assert 0 < len(answer.ids) < LONG
    await until_metric(triton_server.metrics, "num_requests_running", ENGINE, equals=0)
    await until_metric(triton_server.metrics, "requests_cancelled_total", ENGINE, equals=before + 1)


async def test_stop_leaves_the_others_running(triton_server: RunningTriton) -> None:
    tasks = [await start(triton_server, MODEL, f"one-of-{index}", **long(1500)) for index in range(3)]
    await generate(triton_server.grpc, ENGINE, "one-of-1", stop=True)
    reasons = [(await task).finish_reason for task in tasks]
    assert reasons == ["length", "cancelled", "length"]


async def test_closing_a_direct_stream_cancels_it(triton_server: RunningTriton) -> None:
    before = await metric(triton_server.metrics, "requests_cancelled_total", ENGINE)
    direct = {"input_ids": [7, 8, 9], "max_tokens": LONG, "min_tokens": LONG}
    running = await start(triton_server, ENGINE, "", **direct)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await until_metric(triton_server.metrics, "requests_cancelled_total", ENGINE, equals=before + 1)
    await until_metric(triton_server.metrics, "num_requests_running", ENGINE, equals=0)


async def test_stop_of_an_unknown_id_is_harmless(triton_server: RunningTriton) -> None:
    answer = await generate(triton_server.grpc, ENGINE, "never-seen", stop=True)
    assert (answer.pieces, answer.error, answer.finals) == ([], "", 1)


async def test_more_than_slots_and_queue_hold_is_answered_or_refused_at_once(
    triton_server: RunningTriton,
) -> None:
    answers = await asyncio.gather(
        *(
            generate(triton_server.grpc, MODEL, f"crowd-{index}", **long(150))
            for index in range(3 * (SLOTS + QUEUE))
        )
    )
    outcomes = Counter(
        answer.finish_reason or answer.error.partition("overloaded: ")[1] for answer in answers
    )
    assert set(outcomes) == {"length", "overloaded: "}
    assert outcomes["length"] >= SLOTS + QUEUE
    assert all(answer.finals == 1 for answer in answers)
    after = await generate(triton_server.grpc, MODEL, text_input="the cat", max_tokens=3)
    assert after.finish_reason
    await until_metric(triton_server.metrics, "num_requests_running", ENGINE, equals=0)

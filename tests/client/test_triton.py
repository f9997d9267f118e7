import asyncio
import contextlib

import pytest

from client.triton import AsyncTritonClient
from client.wire import GenerateRequest, Tensor, WireError

PIECES = [{"text_output": piece} for piece in "abc"]
END = {"text_output": "", "finish_reason": "length"}


@pytest.fixture
async def client(triton):
    async with AsyncTritonClient(triton.url) as client:
        yield client


async def until(condition, seconds=5.0):
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


async def test_a_stream_yields_each_response_and_ends_once(client, triton):
    triton.script = [*PIECES, END]
    responses = [r async for r in client.generate("toy", GenerateRequest(text_input="x"), request_id="r1")]
    assert [r.text_output for r in responses] == ["a", "b", "c", ""]
    assert [r.finish_reason for r in responses] == ["", "", "", "length"]
    assert triton.requests == [("toy", "r1", {"text_input": ("BYTES", (1, 1), ["x"])})]
    assert triton.stops == []


async def test_token_ids_go_to_the_engine_directly(client, triton):
    _ = [r async for r in client.generate("toy", GenerateRequest(input_ids=[4, 5]))]
    ((model, _, inputs),) = triton.requests
    assert (model, inputs) == ("toy_engine", {"input_ids": ("INT32", (1, 2), [4, 5])})


async def test_requests_get_distinct_ids(client, triton):
    for _ in range(3):
        _ = [r async for r in client.generate("toy", GenerateRequest(text_input="x"))]
    assert len({request_id for _, request_id, _ in triton.requests}) == 3


async def test_leaving_a_stream_early_stops_that_request_in_the_engine(client, triton):
    triton.script = [*PIECES, "forever"]
    stream = client.generate("toy", GenerateRequest(text_input="x"), request_id="r1")
    assert (await anext(stream)).text_output == "a"
    await stream.aclose()
    assert triton.stops == [("toy_engine", "r1")]
    assert triton.running == {}


async def test_cancelling_a_waiting_reader_stops_the_request(client, triton):
    triton.script = [PIECES[0], "forever"]

    async def read():
        async for _ in client.generate("toy", GenerateRequest(text_input="x"), request_id="r1"):
            pass

    task = asyncio.create_task(read())
    await until(lambda: triton.running)
    await asyncio.sleep(0.02)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert triton.stops == [("toy_engine", "r1")]
    await until(lambda: not triton.running)


async def test_a_stop_that_overtakes_its_request_is_sent_again(client, triton):
    triton.script, triton.arrival_delay = ["forever"], 0.2
    stream = client.generate("toy", GenerateRequest(text_input="x"), request_id="r1")
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(anext(stream), 0.05)
    await until(lambda: triton.stops)
    await client.close()
    assert len(triton.stops) > 1
    assert set(triton.stops) == {("toy_engine", "r1")}
    await until(lambda: not triton.running)


async def test_closing_the_client_waits_for_stops_under_way(triton):
    triton.script = ["forever"]
    async with AsyncTritonClient(triton.url) as client:
        task = asyncio.create_task(anext(client.generate("toy", GenerateRequest(text_input="x"))))
        await until(lambda: triton.running)
        task.cancel()
        await asyncio.wait({task})
    assert len(triton.stops) == 1
    assert triton.running == {}


async def test_an_error_response_is_raised_and_nothing_is_stopped(client, triton):
    triton.script = [PIECES[0], "in ensemble 'toy', overloaded: queue: 64 wait already"]
    stream = client.generate("toy", GenerateRequest(text_input="x"))
    await anext(stream)
    with pytest.raises(WireError) as caught:
        await anext(stream)
    assert (caught.value.code, caught.value.message) == ("overloaded", "64 wait already")
    assert triton.stops == []


async def test_a_stream_that_ends_without_a_finish_reason_is_an_error(client, triton):
    triton.script = PIECES
    with pytest.raises(WireError, match="the stream ended before the text did"):
        _ = [r async for r in client.generate("toy", GenerateRequest(text_input="x"))]


async def test_many_streams_share_one_channel(client, triton):
    triton.script = [0.05, *PIECES, END]

    async def text():
        return "".join([r.text_output async for r in client.generate("toy", GenerateRequest(text_input="x"))])

    assert await asyncio.gather(*(text() for _ in range(200))) == ["abc"] * 200


async def test_models_are_those_that_are_ready_with_a_ready_engine(client, triton):
    triton.ready |= {"down": "UNAVAILABLE", "down_engine": "READY", "alone": "READY"}
    assert await client.models() == ["toy"]
    assert await client.readiness() == {"toy": "", "down": "down: unavailable", "alone": ""}
    assert await client.server_ready()


async def test_model_info_reports_the_tensors_in_the_contracts_terms(client):
    info = await client.model_info("toy")
    assert (info.name, info.platform, info.versions) == ("toy", "ensemble", ("1",))
    assert info.inputs == {"text_input": Tensor("BYTES", 1)}
    assert info.outputs == {"output_ids": Tensor("INT32", -1)}


async def test_an_unknown_model_is_not_found(client, triton):
    with pytest.raises(WireError, match="not_found: model"):
        await client.model_info("nobody")
    triton.script = ["Request for unknown model: 'nobody' is not found"]
    with pytest.raises(WireError, match="not_found: model"):
        await anext(client.generate("nobody", GenerateRequest(text_input="x")))


async def test_a_server_that_is_away_is_unavailable_and_the_message_says_how_to_start_it(triton):
    triton.close()
    async with AsyncTritonClient(triton.url) as client:
        for call in (client.models(), anext(client.generate("toy", GenerateRequest(text_input="x")))):
            with pytest.raises(WireError, match="trident serve") as caught:
                await call
            assert caught.value.code == "unavailable"
            assert triton.url in caught.value.message

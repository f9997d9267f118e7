"""The OpenAI endpoints, asked by the official client, over a fake Triton."""

from dataclasses import replace

import openai
import pytest

from backends.tokenizer import evidence
from client.wire import GenerateRequest, GenerateResponse, WireError
from gateway.openai_requests import MAX_BLOCKS, MAX_PERMUTATIONS
from tests.gateway.fake_transport import spoken

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}


async def test_a_chat_completion_comes_back_whole(openai_client, transport):
    completion = await openai_client.chat.completions.create(**CHAT)
    assert completion.object == "chat.completion"
    assert completion.model == "toy"
    assert completion.id.startswith("chatcmpl-")
    (choice,) = completion.choices
    assert (choice.index, choice.message.role, choice.message.content) == (0, "assistant", "Hello world")
    assert (choice.finish_reason, choice.logprobs) == ("stop", None)
    assert completion.usage.model_dump(exclude_none=True) == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert transport.asked == [GenerateRequest(messages=CHAT["messages"], stream=False)]


async def test_every_accepted_field_reaches_the_wire(openai_client, transport):
    transport.script = [GenerateResponse(finish_reason="stop")]
    await openai_client.chat.completions.create(
        model="toy",
        messages=[
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
        ],
        max_completion_tokens=9,
        temperature=1,
        top_p=0.5,
        stop="END",
        seed=-1,
        presence_penalty=-2,
        frequency_penalty=2,
        logit_bias={"5": -100},
        logprobs=True,
        top_logprobs=3,
        user="someone",
        n=1,
        response_format={"type": "text"},
        extra_body={
            "top_k": 4,
            "min_p": 0.25,
            "repetition_penalty": 1.5,
            "min_tokens": 2,
            "evidence": ["first", "second"],
            "num_permutations": 2,
        },
    )
    assert transport.asked == [
        GenerateRequest(
            messages=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "a\nb"}],
            evidence=["first", "second"],
            num_permutations=2,
            max_tokens=9,
            min_tokens=2,
            stop_words=["END"],
            temperature=1.0,
            top_k=4,
            top_p=0.5,
            min_p=0.25,
            repetition_penalty=1.5,
            presence_penalty=-2.0,
            frequency_penalty=2.0,
            seed=2**64 - 1,
            logit_bias={5: -100.0},
            stream=False,
            return_log_probs=True,
            num_log_probs=3,
            user="someone",
        )
    ]


async def test_a_stream_has_one_id_a_role_first_a_reason_last_and_then_done(http, transport):
    transport.script = spoken("Größe ", "🙂", " 日本", finish_reason="length")
    async with http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line async for line in response.aiter_lines() if line]
    assert lines[-1] == "data: [DONE]"
    chunks = [openai.types.chat.ChatCompletionChunk.model_validate_json(line[6:]) for line in lines[:-1]]
    assert len({(c.id, c.created, c.model, c.object) for c in chunks}) == 1
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == "Größe 🙂 日本"
    assert [c.choices[0].finish_reason for c in chunks] == [None] * 4 + ["length"]
    assert all('"usage"' not in line for line in lines)


async def test_usage_comes_last_with_no_choices_only_when_asked_for(openai_client):
    stream = await openai_client.chat.completions.create(
        **CHAT, stream=True, stream_options={"include_usage": True}
    )
    *chunks, last = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)
    assert last.choices == []
    assert (last.usage.prompt_tokens, last.usage.completion_tokens, last.usage.total_tokens) == (7, 2, 9)


@pytest.mark.parametrize("field", ["user", "safety_identifier"])
async def test_who_asks_and_how_urgently_reaches_the_wire(openai_client, transport, field):
    transport.script = [GenerateResponse(finish_reason="stop")]
    await openai_client.chat.completions.create(**CHAT, extra_body={field: "ann", "priority": -2})
    (request,) = transport.asked
    assert (request.user, request.priority) == ("ann", -2)


@pytest.mark.parametrize("field", ["session_id", "prompt_cache_key"])
async def test_a_session_reaches_the_wire_and_usage_tells_what_it_saved(openai_client, transport, field):
    transport.script = [GenerateResponse(finish_reason="stop", num_input_tokens=9, num_cached_tokens=6)]
    completion = await openai_client.chat.completions.create(**CHAT, n=2, extra_body={field: "talk-1"})
    assert [request.session_id for request in transport.asked] == ["talk-1"] * 2
    assert completion.usage.prompt_tokens == 9
    assert completion.usage.prompt_tokens_details.cached_tokens == 6


async def test_text_in_the_last_response_is_sent_before_its_finish_reason(openai_client, transport):
    transport.script = [GenerateResponse(text_output="all", finish_reason="stop")]
    stream = await openai_client.chat.completions.create(**CHAT, stream=True)
    _, piece, end = [chunk.choices[0] async for chunk in stream]
    assert (piece.delta.content, piece.finish_reason) == ("all", None)
    assert (end.delta.content, end.finish_reason) == (None, "stop")


@pytest.mark.parametrize("stream", [False, True])
async def test_choices_run_side_by_side_with_distinct_seeds(openai_client, transport, stream):
    answer = await openai_client.chat.completions.create(
        **CHAT,
        n=3,
        seed=2**63,
        stream=stream,
        extra_body={"stream_options": {"include_usage": True}} if stream else {},
    )
    if stream:
        chunks = [chunk async for chunk in answer]
        usage, parts = chunks[-1].usage, [chunk.choices[0] for chunk in chunks[:-1]]
        texts = ["".join(p.delta.content or "" for p in parts if p.index == i) for i in range(3)]
        assert sum(p.finish_reason == "stop" for p in parts) == 3
    else:
        usage, texts = answer.usage, [choice.message.content for choice in answer.choices]
    assert texts == ["Hello world"] * 3
    assert (usage.prompt_tokens, usage.completion_tokens) == (7, 6)
    assert sorted(request.seed for request in transport.asked) == [2**63, 2**63 + 1, 2**63 + 2]
    assert len(set(transport.ids)) == 3


async def test_log_probs_are_reported_per_token_by_id(openai_client, transport):
    scored = {"output_log_probs": [-0.5], "top_log_probs": [{"4": -0.5, "9": -1.5}]}
    transport.script = [
        GenerateResponse(text_output="a", output_ids=[4], **scored),
        GenerateResponse(output_ids=[4], finish_reason="stop", **scored),
    ]
    completion = await openai_client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2)
    first, second = completion.choices[0].logprobs.content
    assert first == second
    assert (first.token, first.logprob) == ("token_id:4", -0.5)
    assert [(t.token, t.logprob) for t in first.top_logprobs] == [("token_id:4", -0.5), ("token_id:9", -1.5)]

    stream = await openai_client.chat.completions.create(**CHAT, logprobs=True, top_logprobs=2, stream=True)
    scores = [chunk.choices[0].logprobs async for chunk in stream]
    assert [len(s.content) for s in scores if s is not None] == [1, 1]

    text = await openai_client.completions.create(model="toy", prompt="a", logprobs=2)
    scores = text.choices[0].logprobs
    assert (scores.tokens, scores.token_logprobs) == (["token_id:4"] * 2, [-0.5] * 2)
    assert scores.top_logprobs == [{"token_id:4": -0.5, "token_id:9": -1.5}] * 2


MEAN = {"confidence": 0.7, "epistemic": 0.002, "aleatoric": 0.21}


def telling(mean, *, budget=92):
    """Two tokens and the end of an answer, by a model that tells of itself."""
    first, second, end = spoken("Hello", " world")
    pieces = [
        replace(piece, uncertainty={"tokens": {}, "mean": None}, cot_budget=budget)
        for piece in (first, second)
    ]
    return [*pieces, replace(end, uncertainty={"tokens": {}, "mean": mean}, cot_budget=budget)]


@pytest.mark.parametrize("mean", [MEAN, None])
async def test_what_the_model_tells_of_itself_is_an_extension_of_each_choice(openai_client, transport, mean):
    transport.script = telling(mean)
    completion = await openai_client.chat.completions.create(**CHAT, n=2)
    for choice in completion.choices:
        assert choice.message.content == "Hello world"
        assert choice.trident == {"uncertainty": mean, "cot_budget": 92}
    text = await openai_client.completions.create(model="toy", prompt="Hi")
    assert text.choices[0].trident == {"uncertainty": mean, "cot_budget": 92}


async def test_a_streams_last_chunk_of_a_choice_carries_the_extension(openai_client, transport):
    transport.script = telling(MEAN)
    for stream in (
        await openai_client.chat.completions.create(**CHAT, stream=True),
        await openai_client.completions.create(model="toy", prompt="Hi", stream=True),
    ):
        *chunks, last = [chunk.choices[0] async for chunk in stream]
        assert last.trident == {"uncertainty": MEAN, "cot_budget": 92}
        assert not any("trident" in chunk.model_extra for chunk in chunks)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_model_that_tells_nothing_has_no_extension(http, stream):
    response = await http.post("/v1/chat/completions", json={**CHAT, "stream": stream})
    assert "trident" not in response.text


def test_the_bounds_on_evidence_are_the_tokenizers():
    assert (MAX_BLOCKS, MAX_PERMUTATIONS) == (evidence.MAX_BLOCKS, evidence.MAX_ORDERS)


@pytest.mark.parametrize("field", ["evidence", "num_permutations"])
async def test_what_the_server_says_of_evidence_names_the_field(openai_client, transport, field):
    transport.script = [WireError("invalid", field, "17 were given, allowed are 1 to 16")]
    with pytest.raises(openai.BadRequestError) as caught:
        await openai_client.chat.completions.create(**CHAT, extra_body={"evidence": ["a"]})
    assert caught.value.param == field


@pytest.mark.parametrize(
    ("prompt", "wire"),
    [
        ("Hi", [{"text_input": "Hi"}]),
        (["Hi", "Ho"], [{"text_input": "Hi"}, {"text_input": "Ho"}]),
        ([5, 6], [{"input_ids": [5, 6]}]),
        ([[5, 6], [7]], [{"input_ids": [5, 6]}, {"input_ids": [7]}]),
    ],
)
async def test_completions_take_texts_and_token_ids(openai_client, transport, prompt, wire):
    completion = await openai_client.completions.create(model="toy", prompt=prompt, max_tokens=5)
    assert completion.object == "text_completion"
    assert completion.id.startswith("cmpl-")
    assert [choice.text for choice in completion.choices] == ["Hello world"] * len(wire)
    assert completion.usage.prompt_tokens == 7 * len(wire)
    assert transport.asked == [GenerateRequest(**fields, max_tokens=5, stream=False) for fields in wire]


async def test_echo_asks_for_the_prompt_in_the_output(openai_client, transport):
    await openai_client.completions.create(model="toy", prompt="Hi", echo=True)
    assert transport.asked[0].exclude_input_in_output is False


async def test_a_streamed_completion_is_the_same_text(openai_client):
    stream = await openai_client.completions.create(model="toy", prompt="Hi", stream=True)
    choices = [chunk.choices[0] async for chunk in stream]
    assert "".join(choice.text for choice in choices) == "Hello world"
    assert [choice.finish_reason for choice in choices] == [None, None, "stop"]


async def test_an_answer_can_be_sent_back_as_it_came(openai_client, transport):
    completion = await openai_client.chat.completions.create(**CHAT)
    messages = [*CHAT["messages"], completion.choices[0].message, {"role": "user", "content": "More"}]
    await openai_client.chat.completions.create(model="toy", messages=messages)
    assert transport.asked[-1].messages[1] == {"role": "assistant", "content": "Hello world"}


async def test_models_are_listed_and_described(openai_client):
    assert [model.id async for model in openai_client.models.list()] == ["minilm", "toy"]
    assert (await openai_client.models.retrieve("minilm")).id == "minilm"
    model = await openai_client.models.retrieve("toy")
    assert (model.id, model.object, model.owned_by) == ("toy", "model", "trident")
    with pytest.raises(openai.NotFoundError, match="served: toy"):
        await openai_client.models.retrieve("other")


async def test_a_model_loaded_later_is_found(openai_client, transport):
    await openai_client.chat.completions.create(**CHAT)
    transport.served = ["toy", "newer"]
    await openai_client.chat.completions.create(model="newer", messages=CHAT["messages"])

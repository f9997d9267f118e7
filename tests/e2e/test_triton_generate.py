"""Text in, text out, through the real server: the contract as any Triton client meets it."""

import asyncio
import json

import httpx
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from tests.backends.prompt_model import chat_tokenizer
from tests.e2e.conftest import RunningTriton
from tests.e2e.tiny_models import MAX_LENGTH, PRESETS, VOCAB_SIZE, random_decoder
from tests.e2e.triton_calls import Answer, generate

pytestmark = pytest.mark.triton

MODELS = tuple(PRESETS)
PROMPT = "the cat sat on the"
MESSAGES = json.dumps([{"role": "user", "content": "the cat <|im_end|> 🙂"}])


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return chat_tokenizer()


def test_every_exported_model_is_ready(triton_server: RunningTriton) -> None:
    expected = {f"{name}{ending}" for name in MODELS for ending in ("", "_engine", "_tokenizer")}
    assert {model.name for model in triton_server.server.models if model.ready} == expected


@pytest.mark.parametrize("model", MODELS)
async def test_served_text_is_what_pytorch_computes(
    triton_server: RunningTriton, tokenizer: Tokenizer, model: str
) -> None:
    answer = await generate(triton_server.grpc, model, text_input=PROMPT, max_tokens=24, min_tokens=24)
    decoder, ids = random_decoder(model), tokenizer.encode(PROMPT, add_special_tokens=False).ids
    expected = []
    with torch.no_grad():
        for _ in range(24):
            logits = decoder(torch.tensor([ids]))[0][0, -1]
            logits[2] = -torch.inf  # min_tokens bars the end
            expected.append(int(logits.argmax()))
            ids = [*ids, expected[-1]]
    assert answer.ids == expected
    assert answer.text.decode() == tokenizer.decode(expected)


@pytest.mark.parametrize("model", MODELS)
async def test_a_stream_ends_once_and_its_pieces_are_the_whole_answer(
    triton_server: RunningTriton, model: str
) -> None:
    values = {"messages": MESSAGES, "max_tokens": 40, "temperature": 1.0, "seed": 7}
    whole = await generate(triton_server.grpc, model, **values)
    streamed = await generate(triton_server.grpc, model, stream=True, **values)
    assert (len(whole.pieces), whole.finals, streamed.finals) == (1, 1, 1)
    assert len(streamed.pieces) > 1
    assert (streamed.text, streamed.ids) == (whole.text, whole.ids)
    assert streamed.finish_reason == whole.finish_reason in {"stop", "length"}
    assert all(not piece["finish_reason"] for piece in streamed.pieces[:-1])
    assert set(json.loads(streamed.pieces[-1]["timings"])) == {"queue_ns", "prefill_ns", "decode_ns"}


@pytest.mark.parametrize("model", MODELS)
async def test_the_same_seed_gives_the_same_text_alone_and_in_a_crowd(
    triton_server: RunningTriton, model: str
) -> None:
    async def one(seed: int) -> Answer:
        return await generate(
            triton_server.grpc,
            model,
            text_input=PROMPT,
            max_tokens=32,
            temperature=1.0,
            seed=seed,
            stream=True,
        )

    alone = [await one(seed) for seed in range(4)]
    crowd = await asyncio.gather(*(one(seed % 4) for seed in range(16)))
    assert [answer.ids for answer in crowd] == [answer.ids for answer in alone] * 4
    assert len({tuple(answer.ids) for answer in alone}) > 1


async def test_http_takes_scalars_and_answers_like_grpc(triton_server: RunningTriton) -> None:
    body = {"text_input": PROMPT, "max_tokens": 12, "temperature": 0.8, "seed": 3, "stop_words": ["zz", "qq"]}
    async with httpx.AsyncClient(base_url=triton_server.http, trust_env=False) as client:
        response = await client.post("/v2/models/tiny-attention/generate", json=body)
    over_grpc = await generate(triton_server.grpc, "tiny-attention", **body)
    assert response.status_code == 200
    assert response.json()["text_output"].encode() == over_grpc.text
    assert response.json()["output_ids"] == over_grpc.ids


async def test_generate_stream_sends_events_as_they_come(triton_server: RunningTriton) -> None:
    body = {"messages": MESSAGES, "max_tokens": 32, "stream": True}
    whole = await generate(triton_server.grpc, "tiny-retention", messages=MESSAGES, max_tokens=32)
    async with (
        httpx.AsyncClient(base_url=triton_server.http, trust_env=False) as client,
        client.stream("POST", "/v2/models/tiny-retention/generate_stream", json=body) as response,
    ):
        lines = [line async for line in response.aiter_lines() if line]
    events = [json.loads(line.removeprefix("data: ")) for line in lines]
    assert len(events) > 1
    assert "".join(event["text_output"] for event in events).encode() == whole.text
    assert [event["finish_reason"] for event in events if event["finish_reason"]] == [whole.finish_reason]


async def test_the_tokenizer_answers_alone(triton_server: RunningTriton, tokenizer: Tokenizer) -> None:
    async with httpx.AsyncClient(base_url=triton_server.http, trust_env=False) as client:
        response = await client.post(
            "/v2/models/tiny-attention_tokenizer/generate", json={"messages": MESSAGES}
        )
    answer = response.json()
    assert "<|im_end|> 🙂<|im_end|>" in answer["prompt"]
    assert answer["input_ids"].count(2) == 2  # the template's two, not the client's
    assert tokenizer.decode(answer["input_ids"], skip_special_tokens=False) == answer["prompt"]


async def test_token_ids_go_straight_to_the_engine(
    triton_server: RunningTriton, tokenizer: Tokenizer
) -> None:
    ids = tokenizer.encode(PROMPT, add_special_tokens=False).ids
    direct = await generate(triton_server.grpc, "tiny-attention_engine", input_ids=ids, max_tokens=10)
    assert (
        direct.text
        == (await generate(triton_server.grpc, "tiny-attention", text_input=PROMPT, max_tokens=10)).text
    )


async def test_log_probs_come_when_asked_for(triton_server: RunningTriton) -> None:
    asked = {"return_log_probs": True, "num_log_probs": 3}
    answer = await generate(triton_server.grpc, "tiny-attention", text_input=PROMPT, max_tokens=5, **asked)
    (piece,) = answer.pieces
    tops = json.loads(piece["top_log_probs"])
    assert [len(top) for top in tops] == [3] * len(answer.ids)
    # float32 on the wire, so the sum of the parts is as good as their rounding
    assert piece["cum_log_probs"] == pytest.approx(np.sum(piece["output_log_probs"]), rel=1e-5)
    greedy = [max(top.values()) for top in tops]
    assert piece["output_log_probs"] == pytest.approx(greedy, rel=1e-5)


async def test_the_prompt_is_echoed_when_asked_for(triton_server: RunningTriton) -> None:
    values = {"text_input": PROMPT, "max_tokens": 4}
    plain = await generate(triton_server.grpc, "tiny-attention", **values)
    echoed = await generate(triton_server.grpc, "tiny-attention", exclude_input_in_output=False, **values)
    assert echoed.text == PROMPT.encode() + plain.text


MALFORMED: dict[str, tuple[dict[str, object], str]] = {
    "both prompts": ({"text_input": "a", "messages": MESSAGES}, "messages"),
    "messages not JSON": ({"messages": "[{"}, "messages"),
    "messages not an array": ({"messages": "{}"}, "messages"),
    "a message without a role": ({"messages": '[{"content": "x"}]'}, "messages"),
    "not UTF-8": ({"text_input": b"\xff"}, "text_input"),
    "empty prompt": ({"text_input": ""}, "text_input"),
    "prompt over the context": ({"text_input": "the cat " * MAX_LENGTH}, "input_ids"),
    "prompt over the limit": ({"text_input": "a" * (2 << 20)}, "text_input"),
    "no tokens": ({"text_input": "a", "max_tokens": 0}, "max_tokens"),
    "negative tokens": ({"text_input": "a", "max_tokens": -5}, "max_tokens"),
    "least over most": ({"text_input": "a", "max_tokens": 2, "min_tokens": 3}, "min_tokens"),
    "cold": ({"text_input": "a", "temperature": -0.1}, "temperature"),
    "hot": ({"text_input": "a", "temperature": 2.1}, "temperature"),
    "not a number": ({"text_input": "a", "temperature": float("nan")}, "temperature"),
    "top_k": ({"text_input": "a", "top_k": -1}, "top_k"),
    "top_p": ({"text_input": "a", "top_p": 0.0}, "top_p"),
    "min_p": ({"text_input": "a", "min_p": 1.5}, "min_p"),
    "repetition": ({"text_input": "a", "repetition_penalty": 0.0}, "repetition_penalty"),
    "presence": ({"text_input": "a", "presence_penalty": 3.0}, "presence_penalty"),
    "frequency": ({"text_input": "a", "frequency_penalty": float("inf")}, "frequency_penalty"),
    "too many stop words": ({"text_input": "a", "stop_words": ["x"] * 17}, "stop_words"),
    "an empty stop word": ({"text_input": "a", "stop_words": [""]}, "stop_words"),
    "a long stop word": ({"text_input": "a", "stop_words": ["x" * 257]}, "stop_words"),
    "bias not JSON": ({"text_input": "a", "logit_bias": "{"}, "logit_bias"),
    "bias out of range": ({"text_input": "a", "logit_bias": '{"5": 101}'}, "logit_bias"),
    "bias of no token": ({"text_input": "a", "logit_bias": f'{{"{VOCAB_SIZE}": 1}}'}, "logit_bias"),
    "too many alternatives": ({"text_input": "a", "num_log_probs": 21}, "num_log_probs"),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_a_malformed_request_is_told_its_field_and_the_server_lives(
    triton_server: RunningTriton, case: str
) -> None:
    values, field = MALFORMED[case]
    answer = await generate(triton_server.grpc, "tiny-attention", **values)
    assert f"invalid: {field}: " in answer.error
    assert (answer.pieces, answer.finals) == ([], 1)
    assert (await generate(triton_server.grpc, "tiny-attention", text_input="a", max_tokens=1)).ids


@pytest.mark.parametrize(
    ("name", "value"),
    [("input_ids", [VOCAB_SIZE]), ("input_ids", [-1]), ("stop", True)],
    ids=["a token too high", "a negative token", "stop without an id"],
)
async def test_the_engine_itself_names_the_field(
    triton_server: RunningTriton, name: str, value: object
) -> None:
    answer = await generate(triton_server.grpc, "tiny-attention_engine", **{name: value})
    assert f"invalid: {name}: " in answer.error
    assert answer.finals == 1


@pytest.mark.parametrize(
    "body",
    [
        {"text_input": "a", "max_tokens": "many"},
        {"text_input": "a", "max_tokens": [1, 2]},
        {"text_input": 7},
        {"text_input": "a", "seed": -1},
        {"max_tokens": 3},
    ],
)
async def test_what_never_reaches_our_code_is_refused_by_triton_itself(
    triton_server: RunningTriton, body: object
) -> None:
    async with httpx.AsyncClient(base_url=triton_server.http, trust_env=False) as client:
        response = await client.post("/v2/models/tiny-attention/generate", json=body)
        assert response.status_code >= 400  # some of them 500, in Triton's own generate endpoint
        assert response.json()["error"]
        assert (await client.get("/v2/health/ready")).status_code == 200


async def test_every_metric_family_is_on_the_metrics_port(triton_server: RunningTriton) -> None:
    from backends.causal_lm.metrics import FAMILIES

    await generate(triton_server.grpc, "tiny-attention", text_input="a", max_tokens=2)
    await asyncio.sleep(0.6)  # two flushes
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(triton_server.metrics)).text
    for name, family in FAMILIES.items():
        assert f"# TYPE trident_{name} {family.kind}" in text
        for model in MODELS:
            assert f'model="{model}_engine"' in text

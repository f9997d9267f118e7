"""POST /v1/embeddings over a fake Triton, asked by the official client."""

import base64
import struct

import openai
import pytest


async def test_one_text_gives_one_vector(openai_client):
    """The client asks for base64 by itself, and decodes it."""
    answer = await openai_client.embeddings.create(model="minilm", input="four")
    (entry,) = answer.data
    assert (entry.index, list(entry.embedding)) == (0, [4.0, 0.5])
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (3, 3)
    assert answer.model == "minilm"


async def test_floats_are_numbers_and_base64_is_little_endian(http):
    body = {"model": "minilm", "input": ["a", "bcd"]}
    floats = (await http.post("/v1/embeddings", json=body)).json()["data"]
    assert [entry["embedding"] for entry in floats] == [[1.0, 0.5], [3.0, 0.5]]
    coded = (await http.post("/v1/embeddings", json=body | {"encoding_format": "base64"})).json()["data"]
    assert [struct.unpack("<2f", base64.b64decode(entry["embedding"])) for entry in coded] == [
        (1.0, 0.5),
        (3.0, 0.5),
    ]


async def test_many_texts_go_in_batches_and_come_back_in_order(openai_client, transport):
    texts = ["x" * length for length in range(1, 101)]
    answer = await openai_client.embeddings.create(model="minilm", input=texts)
    assert [entry.embedding[0] for entry in answer.data] == list(range(1, 101))
    assert [entry.index for entry in answer.data] == list(range(100))
    assert sorted(map(len, transport.asked)) == [4, 32, 32, 32]
    assert answer.usage.prompt_tokens == 300


@pytest.mark.parametrize(("given", "sums"), [([5, 6], [11]), ([[1, 2], [3]], [3, 3])])
async def test_token_ids_are_texts_too(openai_client, given, sums):
    answer = await openai_client.embeddings.create(model="minilm", input=given)
    assert [entry.embedding[0] for entry in answer.data] == sums


async def test_dimensions_are_the_models_or_refused(openai_client):
    answer = await openai_client.embeddings.create(model="minilm", input="a", dimensions=2)
    assert len(answer.data[0].embedding) == 2
    with pytest.raises(openai.BadRequestError, match="this model's vectors have 2 numbers") as refused:
        await openai_client.embeddings.create(model="minilm", input="a", dimensions=1)
    assert refused.value.param == "dimensions"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": []}, "input"),
        ({"input": ["a", 1]}, "input"),
        ({"input": [[]]}, "input"),
        ({"input": [-1]}, "input"),
        ({"input": ""}, "input"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "truncate": True}, "truncate"),
    ],
)
async def test_what_does_not_fit_is_refused_by_its_name(http, body, param):
    response = await http.post("/v1/embeddings", json={"model": "minilm", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith(param)


async def test_a_model_without_embeddings_is_not_found_and_others_are_named(openai_client):
    with pytest.raises(openai.NotFoundError, match="served: minilm"):
        await openai_client.embeddings.create(model="toy", input="a")


async def test_without_triton_it_is_unavailable(openai_client, transport):
    transport.away = True
    with pytest.raises(openai.InternalServerError) as failed:
        await openai_client.embeddings.create(model="minilm", input="a")
    assert failed.value.status_code == 503
    assert failed.value.response.headers["retry-after"]

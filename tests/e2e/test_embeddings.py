"""Text in, vector out: over Triton with tritonclient, and over the gateway with the official client."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from export.embedder import export_embedder
from export.embedder_options import EmbedderOptions
from tests.e2e.conftest import RunningTriton, running_triton
from tests.e2e.gateway_process import running_gateway
from tests.e2e.tiny_models import install_tiny, random_decoder
from tests.packaged_graphs import MINILM, packaged
from tests.ports import free_ports

pytestmark = pytest.mark.triton

TEXTS = [
    "A man is eating food.",
    "Someone eats a meal.",
    "The girl is carrying a baby.",
    "Größe, naïve, 東京 and 🦊",
    "x",
    "word " * 200,
]
# The project's bound for float32 against the reference.
ATOL = 1e-4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    """all-minilm as imported, and a tiny language model with its embedder."""
    repository = tmp_path_factory.mktemp("embeddings") / "repository"
    checkpoint = install_tiny("tiny-retention", repository, tmp_path_factory)
    for options in (
        EmbedderOptions("all-minilm", packaged(*MINILM), repository=repository),
        EmbedderOptions("tiny-retention", checkpoint, "mean", repository=repository),
    ):
        export_embedder(options, lambda *_: None)
    with running_triton(repository) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(server: RunningTriton) -> Iterator[str]:
    (port,) = free_ports(1)
    with running_gateway(port, server.grpc) as running:
        yield running.url


@pytest.fixture
def client(gateway: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0) as client:
        yield client


def ask(url: str, model: str, **values: Any) -> tuple[NDArray[np.float32], list[int]]:
    """Vectors and numbers of tokens, by plain tritonclient."""
    made = []
    for name, array in values.items():
        made.append(triton.InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype)))
        made[-1].set_data_from_numpy(array)
    with triton.InferenceServerClient(url) as client:
        result = client.infer(model, made)
    return result.as_numpy("embedding"), result.as_numpy("num_tokens").reshape(-1).tolist()


def as_input(texts: list[str]) -> NDArray[Any]:
    return np.array([[text.encode()] for text in texts], np.object_)


@pytest.fixture(scope="module")
def expected() -> NDArray[np.float32]:
    """What sentence-transformers does: its tokenizer, the model, the mean over the tokens, length 1."""
    from transformers import AutoModel, AutoTokenizer

    directory = packaged(*MINILM)
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    model = AutoModel.from_pretrained(directory, local_files_only=True).eval()
    batch = tokenizer(TEXTS, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    vectors: NDArray[np.float32] = torch.nn.functional.normalize(mean).numpy()
    return vectors


def test_minilm_over_triton_is_the_sentence_transformer(
    server: RunningTriton, expected: NDArray[np.float32]
) -> None:
    found, counts = ask(server.grpc, "all-minilm_embedding", text_input=as_input(TEXTS))
    np.testing.assert_allclose(found, expected, atol=ATOL)
    assert counts[4:] == [3, 202]
    alone = [ask(server.grpc, "all-minilm_embedding", text_input=as_input([text]))[0] for text in TEXTS]
    np.testing.assert_allclose(np.concatenate(alone), expected, atol=ATOL)
    assert expected[0] @ expected[1] > 0.6 > expected[0] @ expected[2], "meaning must matter"


def test_a_text_beyond_the_models_length_is_refused_or_cut(server: RunningTriton) -> None:
    long = as_input(["word " * 400])
    with pytest.raises(InferenceServerException, match=r"invalid: text_input: 402 tokens .* up to 256"):
        ask(server.grpc, "all-minilm_embedding", text_input=long)
    _, counts = ask(server.grpc, "all-minilm_embedding", text_input=long, truncate=np.array([[True]]))
    assert counts == [256]


@pytest.mark.parametrize("encoding", ["float", "base64", None])
def test_the_official_client_gets_the_same_vectors(
    client: openai.OpenAI, expected: NDArray[np.float32], encoding: Any
) -> None:
    options = {} if encoding is None else {"encoding_format": encoding}
    answer = client.embeddings.create(model="all-minilm", input=TEXTS, **options)
    data = [entry.embedding for entry in answer.data]
    if encoding == "base64":  # asked for by name, it is left as it came
        import base64

        data = [np.frombuffer(base64.b64decode(str(text)), "<f4").tolist() for text in data]
    np.testing.assert_allclose(np.array(data), expected, atol=ATOL)
    assert answer.usage.prompt_tokens > 202


def test_token_ids_and_their_text_have_one_vector(client: openai.OpenAI) -> None:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(packaged(*MINILM) / "tokenizer.json"))
    tokenizer.no_padding()
    ids = tokenizer.encode(TEXTS[0]).ids
    by_ids, by_text = (
        client.embeddings.create(model="all-minilm", input=given).data[0].embedding
        for given in (ids, TEXTS[0])
    )
    np.testing.assert_allclose(by_ids, by_text, atol=1e-6)


def test_a_language_models_vectors_are_its_hidden_states_mean(client: openai.OpenAI) -> None:
    decoder, ids = random_decoder("tiny-retention"), [5, 77, 130, 9, 200]
    seen: list[torch.Tensor] = []
    decoder.head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        decoder(torch.tensor([ids]))
    mean = seen[0].flatten(0, -2).mean(0)
    answer = client.embeddings.create(model="tiny-retention", input=ids)
    np.testing.assert_allclose(answer.data[0].embedding, mean / mean.norm(), atol=ATOL)
    assert answer.usage.prompt_tokens == 5
    text = client.embeddings.create(model="tiny-retention", input="Hello there").data[0].embedding
    assert abs(np.linalg.norm(text) - 1) < ATOL


def test_errors_reach_the_client_with_their_names(client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="402 tokens were given") as refused:
        client.embeddings.create(model="all-minilm", input="word " * 400)
    assert refused.value.param == "input"
    with pytest.raises(openai.BadRequestError) as beyond:
        client.embeddings.create(model="all-minilm", input=[30522])
    assert beyond.value.param == "input"
    with pytest.raises(openai.NotFoundError, match="served: all-minilm, tiny-retention"):
        client.embeddings.create(model="nothing", input="a")


async def test_two_hundred_texts_at_once_keep_their_order(
    gateway: str, server: RunningTriton, expected: NDArray[np.float32]
) -> None:
    texts = [TEXTS[index % 5] for index in range(200)]
    async with openai.AsyncOpenAI(base_url=f"{gateway}/v1", api_key="none", max_retries=0) as client:
        asked = [client.embeddings.create(model="all-minilm", input=texts[start::4]) for start in range(4)]
        answers = await asyncio.gather(*asked)
    for start, answer in enumerate(answers):
        rows = expected[[index % 5 for index in range(start, 200, 4)]]
        np.testing.assert_allclose(np.array([entry.embedding for entry in answer.data]), rows, atol=ATOL)


def test_the_repository_holds_nothing_else(server: RunningTriton) -> None:
    assert all(status.ready for status in server.server.models), server.server.models
    assert not [path for path in Path(server.repository).parent.iterdir() if ".incoming" in path.name]

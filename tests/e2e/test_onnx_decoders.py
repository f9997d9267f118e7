"""ONNX decoders of both layouts, imported, and saying over the embedded Triton what transformers says."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from export.formats.onnx_graph import read_graph
from export.graph_decoder import import_decoder
from export.pipeline import ExportOptions
from tests.e2e.conftest import RunningTriton, running_triton
from tests.e2e.triton_calls import generate
from tests.export.decoder_graphs import tiny_llama, write_joined, write_shared

pytestmark = pytest.mark.triton

WRITERS = {"joined": write_joined, "shared": write_shared}
# Of several lengths, the last beyond two blocks of the prefix cache.
PROMPTS = ["hello", "the capital of france is", "the river is the seine and the capital is paris " * 8]
LENGTH = 12
ENDS = [2, 7]  # of either folder, barred until the answer is long enough


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny_llama()


@pytest.fixture(scope="module")
def server(llama: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    scratch = tmp_path_factory.mktemp("decoders")
    for name, write in WRITERS.items():
        source = write(scratch / name, llama)
        options = ExportOptions(name, source, repository=scratch / "repository")
        import_decoder(options, read_graph(source), lambda *_: None)
    with running_triton(scratch / "repository") as running:
        yield running


@pytest.fixture(scope="module")
def tokenizer(server: RunningTriton) -> Tokenizer:
    path: Path = server.repository / "shared_tokenizer" / "1" / "tokenizer.json"
    return Tokenizer.from_file(str(path))


def greedy(llama: PreTrainedModel, ids: list[int], ends: list[int]) -> list[int]:
    """The likeliest tokens by transformers, without those that end."""
    said: list[int] = []
    with torch.inference_mode():
        for _ in range(LENGTH):
            logits = llama(torch.tensor([[*ids, *said]])).logits[0, -1]
            logits[ends] = -torch.inf
            said.append(int(logits.argmax()))
    return said


@pytest.mark.parametrize("name", WRITERS)
async def test_prompts_of_several_lengths_at_once_get_the_answers_of_transformers(
    server: RunningTriton, llama: PreTrainedModel, tokenizer: Tokenizer, name: str
) -> None:
    limits = {"max_tokens": LENGTH, "min_tokens": LENGTH}
    asked = (generate(server.grpc, name, text_input=prompt, **limits) for prompt in PROMPTS * 2)
    answers = await asyncio.gather(*asked)
    ends = ENDS if name == "shared" else ENDS[:1]
    for prompt, *both in zip(PROMPTS, answers[: len(PROMPTS)], answers[len(PROMPTS) :], strict=True):
        expected = greedy(llama, tokenizer.encode(prompt, add_special_tokens=False).ids, ends)
        assert [answer.ids for answer in both] == [expected, expected]
        assert both[0].text.decode() == tokenizer.decode(expected)


@pytest.mark.parametrize("name", WRITERS)
async def test_a_second_turn_goes_on_from_what_was_read(server: RunningTriton, name: str) -> None:
    alone = await generate(server.grpc, name, text_input=PROMPTS[-1] + "hello", max_tokens=4)
    again = await generate(server.grpc, name, text_input=PROMPTS[-1] + "hello", max_tokens=4)
    assert again.ids == alone.ids
    assert again.pieces[-1]["num_cached_tokens"] >= 32


@pytest.mark.parametrize("name", WRITERS)
async def test_messages_go_through_the_folders_own_template(server: RunningTriton, name: str) -> None:
    messages = json.dumps([{"role": "user", "content": "hello there"}])
    answer = await generate(server.grpc, name, messages=messages, max_tokens=3, min_tokens=3)
    assert (len(answer.ids), answer.error) == (3, "")

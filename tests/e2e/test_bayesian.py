"""What the Bayesian model tells of itself, and evidence in several orders, over the real server."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from backends.tokenizer.evidence import draw_orders
from client.triton import AsyncTritonClient
from client.wire import ENGINE_INPUTS, EXTRA_OUTPUTS, INPUTS, OUTPUTS
from tests.backends.prompt_model import chat_tokenizer
from tests.e2e.conftest import RunningTriton, running_triton
from tests.e2e.gateway_process import running_gateway
from tests.e2e.tiny_models import install_tiny, random_decoder
from tests.e2e.triton_calls import Answer, generate, until_metric
from tests.ports import free_ports
from training.decoder import Decoder

pytestmark = pytest.mark.triton

MODEL, PLAIN = "bayesian-tiny", "tiny-attention"
PROMPT = "the cat sat on the"
FIGURES = ("confidence", "epistemic", "aleatoric")
BLOCKS = ["the cat sat.", "日本 and the dog", "on the mat 🙂"]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    scratch = tmp_path_factory.mktemp("bayesian")
    for name in (MODEL, PLAIN):
        install_tiny(name, scratch / "repository", tmp_path_factory)
    return scratch / "repository"


@pytest.fixture(scope="module")
def bayesian(repository: Path) -> Iterator[RunningTriton]:
    with running_triton(repository) as triton:
        yield triton


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return random_decoder(MODEL)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return chat_tokenizer()


def token_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def told_by(decoder: Decoder, ids: list[int]) -> dict[str, Tensor]:
    """PyTorch's figures after each of `ids`, (T,) each."""
    extras: dict[str, Tensor] = {}
    with torch.no_grad():
        decoder(torch.tensor([ids]), extras=extras)
    return {name: value[0] for name, value in extras.items()}


def uncertainties(answer: Answer) -> list[dict[str, Any]]:
    return [json.loads(piece["uncertainty"]) for piece in answer.pieces]


async def test_the_tables_with_the_extra_outputs_are_what_the_server_reports(bayesian: RunningTriton) -> None:
    async with AsyncTritonClient(bayesian.grpc) as client:
        told = [await client.model_info(f"{MODEL}{ending}") for ending in ("", "_engine")]
        plain = [await client.model_info(f"{PLAIN}{ending}") for ending in ("", "_engine")]
    assert [info.inputs for info in told] == [info.inputs for info in plain] == [INPUTS, ENGINE_INPUTS]
    assert [info.outputs for info in told] == [OUTPUTS | EXTRA_OUTPUTS] * 2
    assert [info.outputs for info in plain] == [OUTPUTS] * 2


async def test_any_triton_client_gets_the_figures_that_pytorch_computes(
    bayesian: RunningTriton, decoder: Decoder, tokenizer: Tokenizer
) -> None:
    answer = await generate(bayesian.grpc, MODEL, text_input=PROMPT, max_tokens=20, min_tokens=20)
    prompt = token_ids(tokenizer, PROMPT)
    expected = told_by(decoder, [*prompt, *answer.ids])
    (uncertainty,) = uncertainties(answer)
    for name in FIGURES:
        # a token's figures are those before it: the first one's are the last prompt token's
        column = expected[name][len(prompt) - 1 : -1]
        # six digits travel, and float32 sums differ in the last of their seven
        np.testing.assert_allclose(uncertainty["tokens"][name], column, rtol=2e-5)
        assert uncertainty["mean"][name] == pytest.approx(column.mean().item(), rel=2e-5)
    assert answer.pieces[0]["cot_budget"] == round(expected["thought_budget"][len(prompt) - 1].item())


async def test_a_streams_chunks_carry_the_figures_of_their_tokens(bayesian: RunningTriton) -> None:
    values = {"text_input": PROMPT, "max_tokens": 24, "min_tokens": 24}
    (whole,) = uncertainties(await generate(bayesian.grpc, MODEL, **values))
    streamed = await generate(bayesian.grpc, MODEL, stream=True, **values)
    pieces = uncertainties(streamed)
    assert len(pieces) > 1
    assert [piece["mean"] for piece in pieces] == [None] * (len(pieces) - 1) + [whole["mean"]]
    for name in FIGURES:
        assert [value for piece in pieces for value in piece["tokens"][name]] == whole["tokens"][name]
    for piece, told in zip(streamed.pieces, pieces, strict=True):
        assert {len(column) for column in told["tokens"].values()} == {len(piece["output_ids"])}


async def test_http_answers_with_the_figures_and_takes_evidence(bayesian: RunningTriton) -> None:
    body = {
        "text_input": "{evidence} so",
        "evidence": BLOCKS,
        "num_permutations": 3,
        "seed": 5,
        "max_tokens": 8,
    }
    async with httpx.AsyncClient(base_url=bayesian.http, trust_env=False) as client:
        response = await client.post(f"/v2/models/{MODEL}/generate", json=body)
    over_grpc = await generate(bayesian.grpc, MODEL, **body)
    assert response.json()["output_ids"] == over_grpc.ids
    assert json.loads(response.json()["uncertainty"]) == uncertainties(over_grpc)[0]
    assert response.json()["cot_budget"] == over_grpc.pieces[0]["cot_budget"]


@pytest.mark.parametrize("model", [MODEL, PLAIN])
async def test_evidence_in_orders_is_answered_by_the_mean_of_the_single_passes(
    bayesian: RunningTriton, tokenizer: Tokenizer, model: str
) -> None:
    values = {"text_input": "{evidence} so", "evidence": BLOCKS, "num_permutations": 4, "seed": 5}
    sampling = {"max_tokens": 12, "return_log_probs": True, "logit_bias": '{"2": -100}'}
    answer = await generate(bayesian.grpc, model, **values, **sampling)
    assert answer.error == ""
    orders = ["\n".join(BLOCKS[block] for block in order) for order in draw_orders(3, 4, 5)]
    prompts = [token_ids(tokenizer, f"{order} so") for order in orders]
    assert answer.pieces[0]["num_input_tokens"] == sum(map(len, prompts))
    decoder, ids = random_decoder(model), []
    for token, log_prob in zip(answer.ids, answer.pieces[0]["output_log_probs"], strict=True):
        with torch.no_grad():
            every = [decoder(torch.tensor([[*prompt, *ids]]))[0][0, -1].double() for prompt in prompts]
        mean = torch.stack(every).softmax(-1).mean(0)
        mean_without_end = mean.clone()
        mean_without_end[2] = 0
        assert token == int(mean_without_end.argmax())
        # the graph's logits may differ from PyTorch's by 1e-4
        assert np.exp(log_prob) == pytest.approx(mean[token].item(), rel=1e-3)
        ids.append(token)


async def test_one_order_is_the_plain_prompt(bayesian: RunningTriton) -> None:
    sampling = {"max_tokens": 16, "temperature": 1.0, "seed": 3, "return_log_probs": True}
    given = {"text_input": "{evidence} so", "evidence": BLOCKS, "num_permutations": 1}
    one = await generate(bayesian.grpc, MODEL, **given, **sampling)
    plain = await generate(bayesian.grpc, MODEL, text_input="\n".join(BLOCKS) + " so", **sampling)
    for name in ("output_ids", "output_log_probs", "uncertainty", "num_input_tokens"):
        assert one.pieces[0][name] == plain.pieces[0][name]


@pytest.mark.parametrize(
    ("values", "complaint"),
    [
        ({"num_permutations": 2}, "invalid: num_permutations: 2 was given without evidence"),
        ({"evidence": ["a", "b"]}, "invalid: evidence: its place {evidence} stands 0 times in the prompt"),
        (
            {"text_input": "{evidence}", "evidence": list("abcdef"), "num_permutations": 17},
            "invalid: num_permutations: 17 were given, allowed are 1 to 16, as many as the engine has slots",
        ),
    ],
)
async def test_what_can_not_be_permuted_is_refused_by_name(
    bayesian: RunningTriton, values: dict[str, Any], complaint: str
) -> None:
    answer = await generate(bayesian.grpc, MODEL, **{"text_input": PROMPT} | values)
    assert complaint in answer.error
    assert answer.finals == 1


@pytest.fixture(scope="module")
def address(bayesian: RunningTriton) -> Iterator[str]:
    """The gateway's URL for OpenAI clients."""
    (port,) = free_ports(1)
    with running_gateway(port, bayesian.grpc) as gateway:
        yield f"{gateway.url}/v1"


async def test_the_official_client_reads_the_extension_whole_and_streamed(
    bayesian: RunningTriton, address: str
) -> None:
    body = {"model": MODEL, "prompt": "{evidence} so", "max_tokens": 10, "seed": 5}
    extra = {"evidence": BLOCKS, "num_permutations": 3, "min_tokens": 10}
    values = {name: value for name, value in (body | extra).items() if name not in {"model", "prompt"}}
    direct = await generate(bayesian.grpc, MODEL, text_input=body["prompt"], **values)
    (uncertainty,), budget = uncertainties(direct), direct.pieces[0]["cot_budget"]
    async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
        whole = await client.completions.create(**body, extra_body=extra)
        stream = await client.completions.create(**body, extra_body=extra, stream=True)
        *chunks, last = [chunk.choices[0] async for chunk in stream]
        chat = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "so {evidence}"}],
            max_tokens=3,
            extra_body=extra | {"min_tokens": 3},
        )
        plain = await client.completions.create(model=PLAIN, prompt="so", max_tokens=3)
    assert whole.choices[0].text.encode() == direct.text
    expected = {"uncertainty": uncertainty["mean"], "cot_budget": budget}
    assert whole.choices[0].model_extra == last.model_extra == {"trident": expected}
    assert not any(chunk.model_extra for chunk in chunks)
    assert set(chat.choices[0].trident["uncertainty"]) == set(FIGURES)
    assert not plain.choices[0].model_extra


async def test_more_orders_than_slots_is_a_400_that_names_the_field(address: str) -> None:
    async with openai.AsyncOpenAI(base_url=address, api_key="none", max_retries=0) as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(
                model=MODEL,
                prompt="{evidence}",
                extra_body={"evidence": list("abcdef"), "num_permutations": 17},
            )
    assert refused.value.param == "num_permutations"
    assert "1 to 16" in refused.value.message


def trident(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "client", "generate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


async def test_the_command_line_shows_the_uncertainty_of_an_answer(bayesian: RunningTriton) -> None:
    options = [
        "--url",
        bayesian.grpc,
        "--model",
        MODEL,
        "--max-tokens",
        "6",
        "--seed",
        "5",
        "--show-uncertainty",
    ]
    evidence = [argument for block in BLOCKS for argument in ("-e", block)]
    answer = trident(*options, "so", "--raw", *evidence, "--permutations", "3")
    assert answer.returncode == 0, answer.stderr
    values = {"evidence": BLOCKS, "num_permutations": 3, "max_tokens": 6, "seed": 5}
    direct = await generate(bayesian.grpc, MODEL, text_input="{evidence}\n\nso", **values)
    assert answer.stdout == direct.text.decode() + "\n"
    mean = uncertainties(direct)[0]["mean"]
    told = " · ".join(f"{name} {mean[name]:.3g}" for name in FIGURES)
    assert answer.stderr == f"{told} · thought budget {direct.pieces[0]['cot_budget']} tokens\n"


def test_the_command_line_says_which_models_tell_their_uncertainty(bayesian: RunningTriton) -> None:
    answer = trident("--url", bayesian.grpc, "--model", PLAIN, "--show-uncertainty", "so")
    assert (answer.returncode, answer.stdout) == (1, "")
    assert f"{PLAIN!r} does not tell its uncertainty; served that do: {MODEL}" in answer.stderr


async def test_a_cancel_frees_all_rows_of_a_request(bayesian: RunningTriton) -> None:
    values = {"evidence": list("abcd"), "num_permutations": 16, "max_tokens": 4000, "min_tokens": 3000}
    asked = asyncio.create_task(generate(bayesian.grpc, MODEL, "many", text_input="{evidence}", **values))
    await until_metric(bayesian.metrics, "num_requests_running", f"{MODEL}_engine", equals=1)
    await generate(bayesian.grpc, f"{MODEL}_engine", "many", stop=True)
    assert (await asked).finish_reason == "cancelled"
    await until_metric(bayesian.metrics, "num_requests_running", f"{MODEL}_engine", equals=0)
    crowd = [generate(bayesian.grpc, MODEL, text_input=PROMPT, max_tokens=8, seed=1) for _ in range(16)]
    assert len({tuple(answer.ids) for answer in await asyncio.gather(*crowd)}) == 1

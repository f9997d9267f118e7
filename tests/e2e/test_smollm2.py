"""The default model, as `make serve` exports and serves it."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tokenizers import Tokenizer

from export.pipeline import ExportOptions, export_model
from tests.backends.ways import ALONE, WAYS, Talk, held
from tests.e2e.conftest import RunningTriton, running_triton

pytestmark = [pytest.mark.triton, pytest.mark.slow]

QUESTION = "What is the capital of France?"


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    repository = tmp_path_factory.mktemp("smollm2") / "repository"
    export_model(ExportOptions(model="smollm2", repository=repository), lambda stage, detail: None)
    with running_triton(repository) as triton:
        yield triton


def test_trident_generate_knows_the_capital_of_france(smollm2: RunningTriton) -> None:
    command = [
        sys.executable,
        "-m",
        "client",
        "generate",
        "--url",
        smollm2.grpc,
        "--model",
        "smollm2",
        QUESTION,
    ]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "Paris" in answer.stdout


def test_tritons_own_http_endpoint_answers_to_curl(smollm2: RunningTriton) -> None:
    body = {"text_input": "The capital of France is", "max_tokens": 8}
    url = f"{smollm2.http}/v2/models/smollm2/generate"
    answer = httpx.post(url, json=body, trust_env=False, timeout=60).json()
    assert "Paris" in answer["text_output"]


def test_in_int8_too_the_same_seed_says_the_same_in_every_way(smollm2: RunningTriton, tmp_path: Path) -> None:
    """A last bit of attention becomes a quarter of a logit there, and soon another word."""
    version = smollm2.repository / "smollm2_engine" / "1"
    tokenizer = Tokenizer.from_file(str(version / "tokenizer.json"))

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    poem = "The sea is wide, the sea is deep, the sea is where the sailors sleep. "
    system = "<|im_start|>system\nYou are a helpful assistant who answers in short.<|im_end|>\n"
    questions = [QUESTION, f"Repeat this: {poem * 2}", f"The last word of: {poem * 6}", "List ten animals."]
    talks = [
        Talk(
            ids(f"{system}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"),
            ids("<|im_end|>\n<|im_start|>user\nSay that again.<|im_end|>\n<|im_start|>assistant\n"),
            {"max_tokens": 32, "temperature": temperature, "repetition_penalty": 1.0, "seed": 7},
        )
        for question in questions
        for temperature in (0.0, 0.7)
    ]
    alone = held(version, talks, ALONE, tmp_path / "alone")
    for name, way in WAYS.items():
        assert held(version, talks, way, tmp_path / name) == alone, name

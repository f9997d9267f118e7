"""The default model, as `make serve` exports and serves it."""

import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from export.pipeline import ExportOptions, export_model
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

"""`client/wire.py` and the client's own ways in, against the running server."""

import subprocess
import sys

import pytest

from client.triton import AsyncTritonClient
from client.wire import ENGINE_INPUTS, INPUTS, OUTPUTS
from tests.client.test_readme import run_plain_script
from tests.e2e.conftest import RunningTriton

pytestmark = pytest.mark.triton


@pytest.mark.parametrize("model", ["tiny-attention", "tiny-retention"])
async def test_the_tables_are_what_the_server_reports(triton_server: RunningTriton, model: str) -> None:
    async with AsyncTritonClient(triton_server.grpc) as client:
        ensemble = await client.model_info(model)
        engine = await client.model_info(f"{model}_engine")
    assert (ensemble.inputs, ensemble.outputs) == (INPUTS, OUTPUTS)
    assert (engine.inputs, engine.outputs) == (ENGINE_INPUTS, OUTPUTS)


def test_the_readmes_plain_script_streams(triton_server: RunningTriton) -> None:
    ended = run_plain_script(triton_server.grpc, "tiny-attention", "the cat")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout


def trident(*arguments: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "client", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_lists_and_generates(triton_server: RunningTriton) -> None:
    listed = trident("models", "--url", triton_server.grpc)
    assert listed.stdout.split() == ["tiny-attention", "tiny-retention"]
    options = ["--url", triton_server.grpc, "--model", "tiny-attention", "--max-tokens", "8"]
    answers = [trident("generate", *options, "the cat") for _ in range(2)]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout
    assert answers[0].stdout == answers[1].stdout

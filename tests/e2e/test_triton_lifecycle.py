"""A server's life: load, unload, a new version under load, and an end that leaves nothing behind."""

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import psutil
import pytest

from backends.shared_memory import prefix_for
from tests.e2e.conftest import RunningTriton, running_triton
from tests.e2e.gateway_process import running_gateway
from tests.e2e.sick_model import SICK, SICKENING, write_sick_model
from tests.e2e.tiny_models import export_tiny
from tests.e2e.triton_calls import generate
from tests.ports import free_ports

pytestmark = [pytest.mark.triton, pytest.mark.slow]

MODEL = "tiny-attention"
ENGINE = f"{MODEL}_engine"


@pytest.fixture
def own_repository(tiny_repository: Path, tmp_path: Path) -> Path:
    """A copy of one model that a test may change."""
    for ending in ("", "_engine", "_tokenizer"):
        shutil.copytree(tiny_repository / f"{MODEL}{ending}", tmp_path / "repository" / f"{MODEL}{ending}")
    return tmp_path / "repository"


@pytest.fixture
def own_triton(own_repository: Path) -> Iterator[RunningTriton]:
    with running_triton(own_repository) as triton:
        yield triton


async def control(triton: RunningTriton, model: str, action: str) -> int:
    async with httpx.AsyncClient(base_url=triton.http, trust_env=False, timeout=60) as client:
        return (await client.post(f"/v2/repository/models/{model}/{action}")).status_code


async def test_a_new_version_takes_over_and_no_request_is_dropped(
    own_triton: RunningTriton, tmp_path: Path
) -> None:
    over = False

    async def keep_asking() -> list[tuple[int, ...]]:
        answers = []
        while not over:
            answer = await generate(
                own_triton.grpc, MODEL, text_input="the cat", max_tokens=60, min_tokens=60
            )
            assert (answer.error, answer.finals, len(answer.ids)) == ("", 1, 60)
            answers.append(tuple(answer.ids))
        return answers

    askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
    await asyncio.to_thread(export_tiny, MODEL, repository=own_triton.repository, scratch=tmp_path, seed=1)
    assert await control(own_triton, ENGINE, "load") == 200
    await asyncio.sleep(0.5)
    over = True
    answers = await asyncio.gather(*askers)
    assert {asked[0] for asked in answers} != {asked[-1] for asked in answers}
    assert len({tokens for asked in answers for tokens in asked}) == 2  # the old weights' words, then the new


async def test_unload_and_load_again(own_triton: RunningTriton) -> None:
    assert await control(own_triton, MODEL, "unload") == 200
    assert (await generate(own_triton.grpc, MODEL, text_input="a", max_tokens=2)).error
    assert await control(own_triton, MODEL, "load") == 200
    assert (await generate(own_triton.grpc, MODEL, text_input="a", max_tokens=2)).ids


def test_a_broken_model_is_reported_and_the_others_are_served(own_repository: Path) -> None:
    shutil.copytree(own_repository / ENGINE, own_repository / "broken_engine")
    config = own_repository / "broken_engine" / "config.pbtxt"
    config.write_text(config.read_text().replace(ENGINE, "broken_engine"))
    (own_repository / "broken_engine" / "1" / "manifest.json").write_text("{}")
    with running_triton(own_repository) as triton:
        models = {model.name: model for model in triton.server.models}
        assert models[MODEL].ready
        assert not models["broken_engine"].ready
        assert "manifest.json" in models["broken_engine"].reason


def test_nothing_is_left_after_stop(own_repository: Path) -> None:
    with running_triton(own_repository) as triton:
        family = family_of(triton.server.pid)
        prefix = prefix_for(os.getpid(), triton.server.settings.grpc_port)
        regions = shared_memory(prefix)
        assert len(family) >= 3  # the server and two stubs
        assert regions
    assert not [process for process in family if process.is_running()]
    assert not shared_memory(prefix)


def test_nothing_is_left_when_the_starter_is_killed(own_repository: Path) -> None:
    with command_line(own_repository) as (starter, family):
        starter.kill()
    assert_soon(lambda: not [process for process in family if process.is_running()])


def test_sigterm_stops_the_command_in_order(own_repository: Path) -> None:
    with command_line(own_repository) as (starter, family):
        starter.send_signal(signal.SIGTERM)
        assert starter.wait(timeout=30) == 0
    assert not [process for process in family if process.is_running()]


def test_a_dead_server_ends_the_command_with_its_last_words(own_repository: Path) -> None:
    with command_line(own_repository) as (starter, family):
        next(process for process in family if process.name() == "tritonserver").kill()
        assert starter.wait(timeout=30) == 1
        assert starter.stderr is not None
        assert "Triton stopped by itself (signal SIGKILL)" in starter.stderr.read()
    assert not [process for process in family if process.is_running()]


def test_a_crashed_stub_ends_the_command_because_its_requests_would_hang(own_repository: Path) -> None:
    with command_line(own_repository) as (starter, family):
        next(process for process in family if ENGINE in " ".join(process.cmdline()[:2])).kill()
        assert starter.wait(timeout=30) == 1
        assert starter.stderr is not None
        assert f"the process of {ENGINE} crashed" in starter.stderr.read()
    assert not [process for process in family if process.is_running()]


async def test_an_engine_that_died_is_taken_off_the_server_and_can_be_loaded_again(tmp_path: Path) -> None:
    write_sick_model(tmp_path)
    with running_triton(tmp_path) as triton:
        for _ in range(3):
            failed = await generate(triton.grpc, SICK, input_ids=[SICKENING], max_tokens=1)
            assert "internal: engine: " in failed.error
        await until_status(triton.http, f"/v2/models/{SICK}/ready", 400)
        assert (await generate(triton.grpc, SICK, input_ids=[1], max_tokens=1)).error
        assert await control(triton, SICK, "load") == 200
        assert (await generate(triton.grpc, SICK, input_ids=[1], max_tokens=1)).ids == [4]


async def test_the_gateway_names_the_model_that_cannot_answer_until_it_can(own_triton: RunningTriton) -> None:
    (port,) = free_ports(1)
    with running_gateway(port, own_triton.grpc) as gateway:
        async with httpx.AsyncClient(base_url=gateway.url, trust_env=False, timeout=60) as client:
            assert (await client.get("/readyz")).json()["models"] == {MODEL: "ready"}
            assert await control(own_triton, ENGINE, "unload") == 200
            await until_status(gateway.url, "/readyz", 503)
            models = (await client.get("/readyz")).json()["models"]
            assert models in ({MODEL: f"not ready: {ENGINE}: {said}"} for said in ("unloading", "unloaded"))
            assert await control(own_triton, ENGINE, "load") == 200
            await until_status(gateway.url, "/readyz", 200)


async def until_status(address: str, path: str, status: int) -> None:
    async with httpx.AsyncClient(base_url=address, trust_env=False) as client, asyncio.timeout(20):
        while (await client.get(path)).status_code != status:
            await asyncio.sleep(0.1)


@contextmanager
def command_line(repository: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """`python -m backends serve`, ready, with all the processes below it."""
    grpc_port, http_port, metrics_port = free_ports(3)
    ports = [f"--grpc-port={grpc_port}", f"--http-port={http_port}", f"--metrics-port={metrics_port}"]
    command = [sys.executable, "-m", "backends", "serve", f"--repository={repository}", *ports]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as starter:
        assert starter.stderr is not None
        for line in starter.stderr:
            if line.startswith("Triton is ready"):
                break
        yield starter, family_of(starter.pid)[1:]


def family_of(pid: int) -> list[psutil.Process]:
    process = psutil.Process(pid)
    return [process, *process.children(recursive=True)]


def shared_memory(prefix: str) -> list[str]:
    return [name for name in os.listdir("/dev/shm") if name.startswith(prefix)]


def assert_soon(holds: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.05)

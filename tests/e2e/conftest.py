"""The real embedded Triton, once for all end-to-end tests."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from backends.server import EmbeddedServer
from backends.settings import ServerSettings
from tests.e2e.gateway_process import RunningGateway, running_gateway
from tests.e2e.tiny_models import PRESETS, install_tiny
from tests.ports import free_ports


@dataclass(frozen=True)
class RunningTriton:
    """Where a running server answers, and the repository that it serves."""

    server: EmbeddedServer
    repository: Path
    grpc: str  # host:port
    http: str  # URL
    metrics: str  # URL


@contextmanager
def running_triton(repository: Path) -> Iterator[RunningTriton]:
    """Serves `repository` on free loopback ports until the block ends."""
    grpc_port, http_port, metrics_port = free_ports(3)
    settings = ServerSettings(
        repository=repository, grpc_port=grpc_port, http_port=http_port, metrics_port=metrics_port
    )
    if not settings.environment.exists():
        pytest.skip("needs the server's own Python environment, .triton: run `make setup`")
    with EmbeddedServer(settings) as server:
        yield RunningTriton(
            server=server,
            repository=repository,
            grpc=f"127.0.0.1:{grpc_port}",
            http=f"http://127.0.0.1:{http_port}",
            metrics=f"http://127.0.0.1:{metrics_port}/metrics",
        )


@pytest.fixture(scope="session")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository with an attention model and a retention + MoE model, random weights, exported."""
    scratch = tmp_path_factory.mktemp("tiny")
    for name in PRESETS:
        install_tiny(name, scratch / "repository", tmp_path_factory)
    return scratch / "repository"


@pytest.fixture(scope="session")
def triton_server(tiny_repository: Path) -> Iterator[RunningTriton]:
    """The server that tests share; a test that breaks or changes a server starts one of its own."""
    with running_triton(tiny_repository) as triton:
        yield triton


@pytest.fixture(scope="session")
def gateway(triton_server: RunningTriton) -> Iterator[RunningGateway]:
    """The gateway in front of the shared server."""
    (port,) = free_ports(1)
    with running_gateway(port, triton_server.grpc) as running:
        yield running

"""What the embedded server is asked to be, checked before anything starts."""

import os
import socket
from dataclasses import dataclass
from pathlib import Path

from backends.causal_lm.settings import VARIABLES
from backends.environment import ServerEnvironment, ServerError

PROJECT = Path(__file__).resolve().parent.parent
EXIT_SECONDS = 3


@dataclass(frozen=True)
class ServerSettings:
    """Where the server listens, what it serves, and with which Python inside."""

    repository: Path
    host: str = "127.0.0.1"
    grpc_port: int = 8001
    http_port: int = 8003
    metrics_port: int = 8002
    environment: Path = PROJECT / ".triton"
    assembled: Path = PROJECT / ".backends"
    session_directory: Path | None = None
    ready_seconds: float = 120.0
    verbose: bool = False

    @property
    def ports(self) -> dict[str, int]:
        """Option of the command line → port."""
        return {
            "--grpc-port": self.grpc_port,
            "--http-port": self.http_port,
            "--metrics-port": self.metrics_port,
        }


def check_settings(settings: ServerSettings) -> None:
    """Raises ServerError for a repository that isn't there, a port that is taken or given twice, a directory
    that can't be written."""
    if not settings.repository.is_dir():
        raise ServerError(f"no model repository at {settings.repository}: `trident export` makes one")
    taken_by: dict[int, str] = {}
    for option, port in settings.ports.items():
        if port in taken_by:
            raise ServerError(f"port {port} is given to both {taken_by[port]} and {option}: choose two")
        taken_by[port] = option
        check_port(settings.host, port, option)
    if settings.session_directory is not None:
        check_session_directory(settings.session_directory)


def check_port(host: str, port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            why = error.strerror
            raise ServerError(
                f"port {port} on {host} can't be used ({why}): choose another with {option}"
            ) from None


def check_session_directory(directory: Path) -> None:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(directory, os.W_OK | os.X_OK) else "it may not be written"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise ServerError(
            f"sessions can't be kept in {directory} ({why}): choose another with --session-directory"
        )


def command_line(
    settings: ServerSettings, environment: ServerEnvironment, *, backends: Path, shm_prefix: str
) -> list[str]:
    """How tritonserver is called: for few cores, no GPU metrics, load and unload by the API."""
    switch = "true" if settings.verbose else "false"
    return [
        str(environment.binary),
        f"--model-repository={settings.repository.absolute()}",
        f"--backend-directory={backends}",
        f"--backend-config=python,shm-region-prefix-name={shm_prefix}",
        "--model-control-mode=explicit",
        "--load-model=*",
        "--exit-on-error=false",
        f"--exit-timeout-secs={EXIT_SECONDS}",
        f"--http-address={settings.host}",
        f"--http-port={settings.http_port}",
        "--http-thread-count=2",
        f"--grpc-address={settings.host}",
        f"--grpc-port={settings.grpc_port}",
        f"--metrics-address={settings.host}",
        f"--metrics-port={settings.metrics_port}",
        "--allow-gpu-metrics=false",
        "--allow-cpu-metrics=false",
        "--pinned-memory-pool-byte-size=0",
        f"--log-info={switch}",
    ]


def engine_variables(settings: ServerSettings) -> dict[str, str]:
    """What every engine of the server is told."""
    directory = settings.session_directory
    return {} if directory is None else {VARIABLES["session_directory"]: str(directory.absolute())}


def variables_for(environment: ServerEnvironment, inherited: dict[str, str]) -> dict[str, str]:
    """The child's environment: Triton's stub takes the first `python3` of PATH and knows no PYTHONPATH."""
    kept = {name: value for name, value in inherited.items() if not name.startswith("PYTHON")}
    libraries = [*map(str, environment.libraries), *path_entries(kept, "LD_LIBRARY_PATH")]
    programs = [str(environment.root / "bin"), *path_entries(kept, "PATH")]
    return kept | {
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PATH": ":".join(programs),
        "VIRTUAL_ENV": str(environment.root),
        "TOKENIZERS_PARALLELISM": "false",
    }


def path_entries(variables: dict[str, str], name: str) -> list[str]:
    return [entry for entry in variables.get(name, "").split(":") if entry]

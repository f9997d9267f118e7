"""`trident serve`: export when needed, then Triton and the gateway side by side, and all of it down again."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from client.child import Child
from client.wire import WireError

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
DEFAULT_GRPC_PORT = 8001
EXPORT_BYTES = 2 * 2**30
READY_S = 180.0
POLL_S = 0.1
GRACE_S = 15.0


@dataclass(frozen=True)
class Plan:
    """What to serve, and where; `ports` maps each option of the command line to its port."""

    model: str
    precision: str | None
    ports: Mapping[str, int]
    repository: Path = ROOT / "model_repository"
    environment: Path = field(default=ROOT / ".triton", repr=False)
    session_directory: Path | None = None
    verbose: bool = False

    def in_repository(self, repository: Path) -> Plan:
        """Return the plan for another model repository."""
        return replace(self, repository=repository.absolute())


def serve(plan: Plan) -> None:
    """Run until SIGINT or SIGTERM, and leave no process behind; raises WireError with the reason."""
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell has its background jobs ignore SIGINT
        signal.signal(number, _interrupt)
    check(plan)
    try:
        if not is_installed(plan):
            _export(plan)
        with running(plan) as children:
            _await_ready(plan, children)
            _say(_welcome(plan))
            _watch(children)
    except KeyboardInterrupt:
        _say("Stopped.")


def check(plan: Plan) -> None:
    """Raise WireError for a port that is taken or given twice, a missing environment, or too little disk."""
    taken: dict[int, str] = {}
    for option, port in plan.ports.items():
        if port in taken:
            raise _failure(f"port {port} is given to {taken[port]} and {option}; choose two")
        taken[port] = option
        _check_port(port, option)
    if plan.session_directory is not None:
        _check_session_directory(plan.session_directory)
    if not (plan.environment / "bin" / "python").exists():
        raise _failure(f"the server's own Python is missing at {plan.environment}; `make setup` builds it")
    free = shutil.disk_usage(_existing(plan.repository)).free
    if free < EXPORT_BYTES and not is_installed(plan):
        raise _failure(f"exporting needs 2 GiB at {plan.repository}, there are {free / 2**30:.1f}; make room")


def _check_session_directory(directory: Path) -> None:
    """Make it before a model is exported for minutes."""
    try:
        directory.mkdir(parents=True, exist_ok=True)
        why = "" if os.access(directory, os.W_OK | os.X_OK) else "it may not be written"
    except OSError as error:
        why = str(error.strerror)
    if why:
        raise _failure(f"sessions can't be kept in {directory} ({why}); choose another --session-directory")


def is_installed(plan: Plan) -> bool:
    """Return whether the whole model is in the repository, in the precision asked for."""
    parts = [plan.repository / (plan.model + suffix) for suffix in ("", "_tokenizer", "_engine")]
    if not all((part / "config.pbtxt").is_file() for part in parts):
        return False
    manifests = sorted(parts[-1].glob("*/manifest.json"), key=lambda path: int(path.parent.name))
    if not manifests:
        return False
    return plan.precision in (None, json.loads(manifests[-1].read_text())["precision"])


@contextmanager
def running(plan: Plan) -> Iterator[list[Child]]:
    """Run Triton and the gateway, started side by side; the gateway stops first: nobody is cut off."""
    children: list[Child] = []
    try:
        children.append(_start("Triton", _triton_arguments(plan), print_line))
        children.append(
            _start("the gateway", _gateway_arguments(plan), print_line if plan.verbose else print_trouble)
        )
        yield children
    finally:
        with _deaf():
            for child in reversed(children):
                child.stop(GRACE_S)


@contextmanager
def _deaf() -> Iterator[None]:
    """Let no signal interrupt the stopping: every step of it is bounded."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _export(plan: Plan) -> None:
    _say(f"{plan.model} is not installed yet: exporting it (a few minutes, once) …")
    precision = plan.precision or "int8"
    arguments = [
        "export",
        "--model",
        plan.model,
        "--precision",
        precision,
        "--repository",
        str(plan.repository),
    ]
    child = Child("the export", arguments, directory=ROOT, show=None)
    try:
        code = child.wait()
    finally:
        with _deaf():
            child.stop(GRACE_S)
    if code != 0:
        raise _failure(f"the export of {plan.model} failed (exit code {code}); its reason stands above")


def _triton_arguments(plan: Plan) -> list[str]:
    ports = [f"{option}={port}" for option, port in plan.ports.items() if option != "--port"]
    verbose = ["--verbose"] if plan.verbose else []
    # Absolute, for the server is started elsewhere.
    sessions = [f"--session-directory={plan.session_directory.absolute()}"] if plan.session_directory else []
    return ["backends", "serve", "--repository", str(plan.repository), *ports, *sessions, *verbose]


def _gateway_arguments(plan: Plan) -> list[str]:
    triton = f"{HOST}:{plan.ports['--grpc-port']}"
    return ["gateway", "--host", HOST, "--port", str(plan.ports["--port"]), "--url", triton]


def _start(name: str, arguments: Sequence[str], show: Callable[[str], None]) -> Child:
    return Child(name, arguments, directory=ROOT, show=show)


def _await_ready(plan: Plan, children: Sequence[Child]) -> None:
    """Return when the gateway says that the model is ready; raises WireError when that cannot come."""
    deadline = time.monotonic() + READY_S
    state: dict[str, Any] = {}
    while state.get("triton") not in ("ready", "not ready"):
        if time.monotonic() > deadline:
            raise _failure(f"not ready after {READY_S:.0f} s: {state or 'the gateway does not answer'}")
        _raise_if_dead(children)
        time.sleep(POLL_S)
        state = _readiness(plan.ports["--port"])
    if state["models"].get(plan.model) != "ready":
        ready = [name for name, said in state["models"].items() if said == "ready"]
        raise _failure(
            f"{plan.model} did not load; ready: {', '.join(ready) or 'none'}. Triton's reason stands above"
        )


def _readiness(port: int) -> dict[str, Any]:
    """Return what /readyz says; empty while nothing answers."""
    connection = http.client.HTTPConnection(HOST, port, timeout=5)
    try:
        connection.request("GET", "/readyz")
        state: dict[str, Any] = json.load(connection.getresponse())
    except OSError:
        return {}
    finally:
        connection.close()
    return state


def _watch(children: Sequence[Child]) -> NoReturn:
    while True:
        _raise_if_dead(children)
        time.sleep(POLL_S)


def _raise_if_dead(children: Sequence[Child]) -> None:
    for child in children:
        if (code := child.exit_code()) is not None:
            raise _failure(f"{child.name} ended (exit code {code}); its last words:\n{child.last_words()}")


def _welcome(plan: Plan) -> str:
    address, grpc_port = f"http://{HOST}:{plan.ports['--port']}", plan.ports["--grpc-port"]
    url = "" if grpc_port == DEFAULT_GRPC_PORT else f" --url {HOST}:{grpc_port}"
    body = {"model": plan.model, "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    return f"""
{plan.model} is on the air: {address}   (OpenAI's API at {address}/v1, documents at {address}/docs)

  curl {address}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{json.dumps(body)}'

  {_command()} chat{url}

Ctrl-C stops everything."""


def _command() -> str:
    """Return how this command was called, so that what is printed works when it is pasted."""
    return sys.argv[0] if Path(sys.argv[0]).name == "trident" else "trident"


def _check_port(port: int, option: str) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError as error:
            message = f"port {port} can't be used ({error.strerror}); choose another by {option}"
            raise _failure(message) from error


def _existing(path: Path) -> Path:
    return next(parent for parent in (path, *path.parents) if parent.exists())


def _failure(message: str) -> WireError:
    return WireError("unavailable", "server", message)


def _interrupt(signum: int, frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


def _say(text: str) -> None:
    print(text, flush=True)


def print_line(line: str) -> None:
    """Show a child's line."""
    print(line, file=sys.stderr, flush=True)


def print_trouble(line: str) -> None:
    """Show a child's line of JSON log unless it is mere information."""
    if '"level": "info"' not in line:
        print_line(line)

"""The gateway as a process of its own, as `trident serve` starts it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx

START_S = 30.0


@dataclass(frozen=True)
class RunningGateway:
    """Where it answers, and its process id."""

    url: str
    pid: int


@contextmanager
def running_gateway(port: int, triton_grpc: str, module: str = "gateway") -> Iterator[RunningGateway]:
    """Serves Triton at `triton_grpc` on a loopback port until the block ends."""
    command = [sys.executable, "-m", module, "--port", str(port), "--url", triton_grpc]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    gateway = RunningGateway(f"http://127.0.0.1:{port}", process.pid)
    try:
        await_ready(gateway, process)
        yield gateway
    finally:
        process.terminate()
        process.wait(20)


def await_ready(gateway: RunningGateway, process: "subprocess.Popen[bytes]") -> None:
    """Returns once every model is ready."""
    deadline = time.monotonic() + START_S
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline:
            assert process.poll() is None, "the gateway has ended"
            try:
                if client.get(f"{gateway.url}/readyz").status_code == 200:
                    return
            except httpx.TransportError:
                pass
            time.sleep(0.1)
    raise TimeoutError(f"the gateway was not ready after {START_S} s")

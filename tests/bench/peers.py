"""The peers that this machine has: which they are, how to get the others, and one of them by its name.

They live in an environment of their own, `.peers`, and run as processes of their own.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Protocol

from rich.console import Console

from tests.bench.genai import GenAIPeer
from tests.bench.llama_cpp import Launch, LlamaCppPeer
from tests.bench.peer_process import ENVIRONMENT, PYTHON
from tests.bench.transformers_peer import TransformersPeer
from tests.bench.weights import Weights
from tests.bench.workload import Workload

NATIVE_SERVER = ENVIRONMENT / "llama.cpp" / "bin" / "llama-server"


class Peer(Protocol):
    """One contender with one model loaded."""

    name: str

    def rate(self, workload: Workload) -> float:
        """Tokens per second of the whole workload, prompts included."""
        ...

    def close(self) -> None:
        """Give the memory back."""
        ...


def say_missing() -> None:
    """One line for every peer that is not there, and how to get it."""
    missing = {
        "llama.cpp's wheel and onnxruntime-genai": (PYTHON, "make peers"),
        "llama.cpp compiled for this processor": (NATIVE_SERVER, "make peers-native (a quarter of an hour)"),
    }
    for name, (path, command) in missing.items():
        if not path.exists():
            Console(stderr=True).print(f"without {name}: get it with `{command}`")


def llama_cpp_launches() -> list[Launch]:
    """The builds of llama.cpp that are here."""
    launches = []
    if NATIVE_SERVER.exists():
        launches.append(Launch("llama.cpp native", (str(NATIVE_SERVER),)))
    if PYTHON.exists():
        worker = Path(__file__).with_name("llama_cpp_worker.py")
        launches.append(Launch("llama.cpp wheel", (str(PYTHON), str(worker))))
    return launches


@contextmanager
def open_peers(weights: Weights, precision: str, workload: Workload) -> Iterator[list[Peer]]:
    """Every peer that has this bit width, loaded for the workload and closed behind it."""
    with ExitStack() as stack:
        peers: list[Peer] = []
        for peer in _peers(weights, precision, workload):
            stack.callback(peer.close)
            peers.append(peer)
        yield peers


def _peers(weights: Weights, precision: str, workload: Workload) -> Iterator[Peer]:
    for launch in llama_cpp_launches():
        for block_type, path in weights.gguf(precision).items():
            yield LlamaCppPeer(launch, path, block_type, workload)
    if PYTHON.exists():
        yield GenAIPeer(weights, precision)
    if precision == "fp32":
        yield TransformersPeer(weights.source())

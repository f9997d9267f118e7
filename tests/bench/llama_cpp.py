"""llama.cpp by its own server: prompts as token ids, one response a stream, so that HTTP costs nothing.

Two builds may be here: the wheel `xllamacpp`, compiled for any x86-64 with AVX2, and one compiled for this
processor. Each run of a workload has a server with as many slots as streams.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np

from tests.bench.peer_process import THREADS, PeerProcess
from tests.bench.workload import Workload
from tests.ports import free_ports

LOGS = Path(__file__).parent / "results" / "logs"
READY_SECONDS = 60.0
SPARE_TOKENS = 32
ROUND_TO = 256  # llama.cpp's context is a multiple of it, per slot
GREEDY = {"temperature": 0.0, "top_k": 1, "samplers": ["top_k"], "ignore_eos": True, "cache_prompt": False}


@dataclass(frozen=True)
class Launch:
    """A build's name, and the command that takes llama-server's options."""

    name: str
    command: tuple[str, ...]


class LlamaServer:
    """llama.cpp's server with `slots` slots of `context` tokens; `url` answers once it is made."""

    def __init__(self, launch: Launch, path: Path, *, slots: int, context: int) -> None:
        (port,) = free_ports(1)
        per_slot = -(-context // ROUND_TO) * ROUND_TO
        options = {
            "--model": str(path),
            "--port": str(port),
            "--threads": str(THREADS),
            "--parallel": str(slots),
            "--ctx-size": str(slots * per_slot),
        }
        command = [*launch.command, *(word for pair in options.items() for word in pair)]
        self._process = PeerProcess(command, LOGS / f"{launch.name.replace(' ', '-')}.log")
        self.url = f"http://127.0.0.1:{port}"
        try:
            self._await_ready()
        except BaseException:
            self.close()
            raise

    def _await_ready(self) -> None:
        deadline = time.monotonic() + READY_SECONDS
        with httpx.Client(trust_env=False) as client:
            while time.monotonic() < deadline:
                self._process.check()
                try:
                    if client.get(f"{self.url}/health").status_code == 200:
                        return
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
        raise TimeoutError(f"llama.cpp's server was not ready after {READY_SECONDS} s")

    def close(self) -> None:
        """End the process."""
        self._process.close()


class LlamaCppPeer:
    """One GGUF file in one build of llama.cpp."""

    def __init__(self, launch: Launch, path: Path, block_type: str, workload: Workload) -> None:
        self.name = f"{launch.name} {block_type}"
        context = workload.prompt_tokens + workload.new_tokens + SPARE_TOKENS
        self._server = LlamaServer(launch, path, slots=workload.streams, context=context)
        limits = httpx.Limits(max_connections=workload.streams)
        self._client = httpx.Client(base_url=self._server.url, timeout=None, limits=limits, trust_env=False)
        self._pool = ThreadPoolExecutor(workload.streams)
        self._vocab_size = int(self._client.get("/v1/models").json()["data"][0]["meta"]["n_vocab"])

    def rate(self, workload: Workload) -> float:
        """Tokens per second of the whole workload, prompts included."""
        prompts = workload.prompts(self._vocab_size).tolist()
        start = time.perf_counter()
        counts = list(self._pool.map(lambda prompt: self._complete(prompt, workload.new_tokens), prompts))
        duration = time.perf_counter() - start
        assert np.all(np.array(counts) == workload.new_tokens), counts
        return workload.tokens / duration

    def _complete(self, prompt: list[int], new_tokens: int) -> int:
        body = {**GREEDY, "prompt": prompt, "n_predict": new_tokens}
        response = self._client.post("/completion", json=body).raise_for_status()
        return int(response.json()["tokens_predicted"])

    def close(self) -> None:
        """End the server."""
        self._pool.shutdown()
        self._client.close()
        self._server.close()

"""onnxruntime-genai on the same weights: its own model builder's graph, its own generator, a static batch."""

import json
import subprocess
import sys
from pathlib import Path

from tests.bench.peer_process import ENVIRONMENT, PYTHON, THREADS, PeerProcess
from tests.bench.weights import MODELS, Weights
from tests.bench.workload import Workload
from training.checkpoint import atomic_directory

HERE = Path(__file__).parent


class GenAIPeer:
    """One model in one precision."""

    def __init__(self, weights: Weights, precision: str) -> None:
        self.name = "onnxruntime-genai"
        worker = [str(PYTHON), str(HERE / "genai_worker.py"), str(built(weights, precision)), str(THREADS)]
        self._process = PeerProcess(worker, HERE / "results" / "logs" / "genai.log")
        self._vocab_size = int(self._process.read())

    def rate(self, workload: Workload) -> float:
        """Tokens per second of the whole workload, prompts included."""
        prompts = workload.prompts(self._vocab_size).tolist()
        seconds = self._process.ask(json.dumps({"prompts": prompts, "new_tokens": workload.new_tokens}))
        return workload.tokens / float(seconds)

    def close(self) -> None:
        """End the process."""
        self._process.close()


def built(weights: Weights, precision: str) -> Path:
    """Its model directory, made once by its builder, which needs torch and so runs in our environment."""
    directory = MODELS / "genai" / f"{weights.model}-{precision}"
    if not directory.is_dir():
        builder = next(ENVIRONMENT.glob("lib/python*/site-packages/onnxruntime_genai/models/builder.py"))
        source = str(weights.huggingface())
        with atomic_directory(directory) as fresh:
            options = ["-i", source, "-o", str(fresh), "-p", precision, "-e", "cpu", "-c", str(fresh)]
            done = subprocess.run([sys.executable, str(builder), *options], capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"onnxruntime-genai's builder failed:\n{done.stderr[-2000:]}")
    return directory

"""The same graph in a bare ONNX Runtime session: a loop with bound buffers, argmax, and nothing else."""

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.runtime.state import StatePools
from tests.bench.workload import Workload


class BareSession:
    """The lower bound of what running the graph costs: all streams in step, states in place, greedy."""

    def __init__(self, version: Path, rows: int) -> None:
        self.manifest = read_manifest(version / "manifest.json")
        options = ort.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        self._session = ort.InferenceSession(
            version / self.manifest.graph, options, providers=["CPUExecutionProvider"]
        )
        self._states = StatePools(self.manifest.states, rows)
        self._logits = np.zeros((rows, self.manifest.vocab_size), np.float32)

    def rate(self, workload: Workload) -> float:
        """Tokens per second of the whole workload, prompts included."""
        for row in range(workload.streams):
            self._states.reset(row)
        prompts = workload.prompts(self.manifest.vocab_size)
        start = time.perf_counter()
        for row, prompt in enumerate(prompts):
            self._run(row, row + 1, prompt[None], np.arange(len(prompt))[None])
        for position in range(workload.prompt_tokens, workload.prompt_tokens + workload.new_tokens - 1):
            tokens = self._logits[: workload.streams].argmax(axis=1)[:, None]
            self._run(0, workload.streams, tokens, np.full_like(tokens, position))
        self._logits[: workload.streams].argmax(axis=1)
        return workload.tokens / (time.perf_counter() - start)

    def _run(self, first: int, stop: int, ids: NDArray[np.int64], positions: NDArray[np.int64]) -> None:
        binding = self._session.io_binding()
        inputs = {"input_ids": ids, "positions": positions, "lengths": np.full(len(ids), ids.shape[1])}
        inputs["logits_at"] = np.full((len(ids), 1), ids.shape[1] - 1)
        for name, array in inputs.items():
            bind_input(binding, name, array)
        for state, buffer in zip(self._states.states, self._states.pools, strict=True):
            bind_input(binding, state.past, buffer[first:stop])
            bind_output(binding, state.present, buffer[first:stop])
        bind_output(binding, "logits", self._logits[first:stop, None])
        self._session.run_with_iobinding(binding)


def bind_input(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Let the session read `array` where it lies."""
    binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)


def bind_output(binding: Any, name: str, array: NDArray[Any]) -> None:
    """Let the session write into `array`."""
    binding.bind_output(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)

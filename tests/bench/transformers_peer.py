"""Hugging Face transformers on the same weights, as its users run it: `generate` in fp32."""

import os
import time
from pathlib import Path

import torch
import transformers

from tests.bench.workload import Workload


class TransformersPeer:
    """A causal language model read from a GGUF file or a Hugging Face directory."""

    name = "transformers fp32"

    def __init__(self, source: Path) -> None:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        transformers.utils.logging.disable_progress_bar()
        file = {"gguf_file": source.name} if source.is_file() else {}
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            source.parent if file else source, dtype=torch.float32, **file
        )
        self._model.generation_config.eos_token_id = None
        self._vocab_size: int = self._model.config.vocab_size

    def rate(self, workload: Workload) -> float:
        """Tokens per second of the whole workload, prompts included."""
        prompts = torch.from_numpy(workload.prompts(self._vocab_size))
        start = time.perf_counter()
        with torch.inference_mode():
            ids = self._model.generate(
                prompts,
                attention_mask=torch.ones_like(prompts),
                max_new_tokens=workload.new_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        duration = time.perf_counter() - start
        assert ids.shape == (workload.streams, workload.prompt_tokens + workload.new_tokens)
        return workload.tokens / duration

    def close(self) -> None:
        """Give the memory back."""
        del self._model

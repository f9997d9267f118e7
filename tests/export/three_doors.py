"""One set of weights behind three doors: a GGUF file, a Hugging Face directory, and a safetensors file."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from export.formats.readers import read_model
from training.checkpoint import atomic_directory


def directory_from_gguf(gguf: Path, directory: Path) -> Path:
    """The directory that transformers makes of a llama's GGUF file, by its own reader of it; made once."""
    if not directory.is_dir():
        model = LlamaForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
        # It says that it is quantized, but its weights are float32 by now.
        values = model.config.to_dict()
        values.pop("quantization_config", None)
        plain = LlamaForCausalLM(LlamaConfig.from_dict(values))
        plain.load_state_dict(model.state_dict())
        with atomic_directory(directory) as fresh:
            plain.save_pretrained(fresh)
            read_model(gguf).tokenizer.write(fresh)
    return directory


def doors(gguf: Path, directory: Path) -> dict[str, Path]:
    """What can be imported, by the door's name; the last two are made in `directory`."""
    made = directory_from_gguf(gguf, directory)
    return {"gguf": gguf, "directory": made, "safetensors": made / "model.safetensors"}

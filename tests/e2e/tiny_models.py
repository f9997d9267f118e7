"""Tiny random models for the end-to-end tests, through the real export pipeline."""

import shutil
from pathlib import Path

import pytest
import torch

from export.pipeline import ExportOptions, export_model
from tests.backends.prompt_model import CHATML, chat_tokenizer
from tests.once import once, shared_directory
from training.checkpoint import save_model
from training.decoder import Decoder
from training.presets import preset

PRESETS = {"tiny-attention": "llama-tiny", "tiny-retention": "retnet-moe-tiny"}
VOCAB_SIZE, MAX_LENGTH = 512, 4096
TOKENIZER_CONFIG = '{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "add_bos_token": false}'


def install_tiny(name: str, repository: Path, factory: pytest.TempPathFactory) -> Path:
    """Copies into `repository` what `export_tiny` makes once for all tests; returns its checkpoint."""

    def export(directory: Path) -> None:
        export_tiny(name, repository=directory / "repository", scratch=directory)

    made = once(shared_directory(factory) / f"{name}.exported", export)
    shutil.copytree(made / "repository", repository, dirs_exist_ok=True)
    return made / f"{name}-0"


def export_tiny(name: str, *, repository: Path, scratch: Path, seed: int = 0) -> Path:
    """Installs the model called `name`, a key of PRESETS or itself a preset, with weights from `seed`.

    Returns its version directory.
    """
    decoder = random_decoder(name, seed)
    checkpoint = scratch / f"{name}-{seed}"
    companions = {
        "tokenizer.json": chat_tokenizer().to_str(),
        "tokenizer_config.json": TOKENIZER_CONFIG,
        "chat_template.jinja": CHATML,
    }
    save_model(checkpoint, decoder, companions=companions)
    options = ExportOptions(model=name, source=checkpoint, precision="fp32", repository=repository)
    return export_model(options, lambda stage, detail: None).directory


def random_decoder(name: str, seed: int = 0) -> Decoder:
    """The PyTorch model that `export_tiny` exports."""
    torch.manual_seed(seed)
    changes = {"vocab_size": VOCAB_SIZE, "max_length": MAX_LENGTH}
    return Decoder(preset(PRESETS.get(name, name)).model_copy(update=changes)).eval()

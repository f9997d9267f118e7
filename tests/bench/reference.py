"""The LLaMA that figures are compared on, of random weights; and the same with retention's constant state."""

from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from export.manifest import Precision
from export.pipeline import ExportOptions, export_model
from training.chat import ROLES
from training.checkpoint import atomic_directory, save_model
from training.config import ModelConfig
from training.data.chitchat import read_chitchat
from training.decoder import Decoder
from training.tokenizer import tokenizer_files, train_tokenizer

SHAPE = {
    "vocab_size": 8192,
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
RETENTION = ModelConfig(
    vocab_size=8192,
    max_length=2**15,
    d_model=512,
    num_layers=8,
    num_heads=8,
    num_kv_heads=8,
    head_dim=64,
    value_dim=128,
    d_ff=1408,
    mixer="retention",
    ffn="swiglu",
    position="none",
)
ATTENTION = RETENTION.model_copy(
    update={"mixer": "attention", "num_kv_heads": 4, "value_dim": None, "position": "rope"}
)


MODELS = {"retention": RETENTION, "attention": ATTENTION}

_MODELS_DIRECTORY = Path(__file__).parent / "models"


def llama_directory(directory: Path) -> Path:
    """The reference as a Hugging Face directory, made once: what Trident imports and transformers reads."""
    if not directory.is_dir():
        torch.manual_seed(0)
        model = LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=False))
        with atomic_directory(directory) as fresh:
            model.save_pretrained(fresh)
            for name, text in _tokenizer().items():
                (fresh / name).write_text(text, encoding="utf-8")
    return directory


def checkpoint(directory: Path, config: ModelConfig) -> Path:
    """A Trident checkpoint of random weights, made once."""
    if not directory.is_dir():
        torch.manual_seed(0)
        save_model(directory, Decoder(config), companions=_tokenizer())
    return directory


def exported(name: str) -> Path:
    """The version directory of one of MODELS in float32, random weights; exported when it has changed."""
    return export_reference(f"reference-{name}", MODELS[name])


def export_reference(model: str, config: ModelConfig, precision: Precision = "fp32") -> Path:
    """The version directory of a checkpoint of random weights."""
    source = checkpoint(_MODELS_DIRECTORY / model, config)
    options = ExportOptions(
        model=model, source=source, repository=_MODELS_DIRECTORY / precision, precision=precision
    )
    return export_model(options, lambda stage, detail: None).directory


def _tokenizer() -> dict[str, str]:
    texts = (message.content for talk in read_chitchat() for message in talk.messages)
    return tokenizer_files(train_tokenizer(texts, vocab_size=SHAPE["vocab_size"], chat=ROLES))

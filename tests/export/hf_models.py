"""Random models of every architecture in the table, made and saved by transformers."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from export.formats.readers import read_model
from tests.export.tiny_gguf import TEMPLATE, TinyLlama

VOCABULARY = 300  # that of the tiny tokenizer, with some rows to spare
LLAMA: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "n_positions": 256,
    "n_embd": 128,
    "n_layer": 2,
    "n_head": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


@dataclass(frozen=True)
class Case:
    """One model: the type's configuration class finds it, `settings` change the base sizes."""

    model_type: str
    name: str
    settings: dict[str, Any] = field(default_factory=dict)

    def make(self, **more: Any) -> PreTrainedModel:
        """The model with all weights random, biases and norms too."""
        base = GPT2 if self.model_type == "gpt2" else LLAMA
        config = transformers.AutoConfig.for_model(self.model_type, **base | self.settings | more)
        config._attn_implementation = "eager"
        torch.manual_seed(0)
        model = transformers.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.normal_(mean=1.0 if "norm" in name or "ln_" in name else 0.0, std=0.1)
        return model


def case(model_type: str, name: str, **settings: Any) -> Case:
    return Case(model_type, name, settings)


CASES = [
    case("gpt2", "tied"),
    case("gpt2", "own-head", tie_word_embeddings=False, n_inner=96, activation_function="relu"),
    case("gpt2", "head-dim-128", n_embd=256, activation_function="gelu"),
    case("llama", "grouped"),
    case("llama", "tied", tie_word_embeddings=True, num_key_value_heads=1),
    case("llama", "attention-biases", attention_bias=True, head_dim=128),
    case("llama", "all-biases", attention_bias=True, mlp_bias=True, num_key_value_heads=4),
    case("llama", "llama3-rope", rope_parameters=LLAMA3_ROPE),
    case(
        "llama",
        "linear-rope",
        rope_parameters={"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
        rms_norm_eps=1e-5,
    ),
    case(
        "llama",
        "long-rope",
        max_position_embeddings=131072,
        rope_parameters=LLAMA3_ROPE
        | {
            "original_max_position_embeddings": 8192,
        },
    ),
    case("mistral", "window", sliding_window=13),
    case("mistral", "no-window", sliding_window=None, head_dim=128),
    case("qwen2", "biases", num_key_value_heads=4),
    case(
        "qwen2", "tied", tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": 1e6}
    ),
    case("qwen2", "window", use_sliding_window=True, sliding_window=13, max_window_layers=0),
    case("qwen3", "norms"),
    case("qwen3", "tied", tie_word_embeddings=True, head_dim=128, attention_bias=True),
    case("mixtral", "experts", num_local_experts=4, num_experts_per_tok=2),
    case("mixtral", "window", num_local_experts=3, num_experts_per_tok=1, sliding_window=13, head_dim=128),
    case("phi3", "fused", head_dim=16),
    case("phi3", "window", hidden_size=256, sliding_window=13, num_key_value_heads=4),
]


def write_tokenizer(directory: Path) -> None:
    """The tiny GGUF's vocabulary in Hugging Face's form."""
    files = read_model(TinyLlama().write(directory / "tiny.gguf")).tokenizer
    (directory / "tiny.gguf").unlink()
    files.write(directory)


def write_model(directory: Path, model: PreTrainedModel, **saving: Any) -> Path:
    """The directory as `save_pretrained` writes it, with a tokenizer."""
    model.save_pretrained(directory, **saving)
    write_tokenizer(directory)
    return directory


def change_config(directory: Path, **changes: Any) -> None:
    """Change keys of config.json; a value of None writes null."""
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


__all__ = ["CASES", "TEMPLATE", "Case", "change_config", "write_model", "write_tokenizer"]

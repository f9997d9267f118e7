"""The one table of what Hugging Face checkpoints can be: `model_type` to configuration and tensor names."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from export.errors import ExportError
from export.formats.fields import Fields
from export.formats.origins import (
    Origin,
    columns,
    interleaved_experts,
    module,
    rows,
    stacked_experts,
    transposed,
)
from export.formats.retnet import RETNET_BUFFERS, RETNET_ORIGINS, check_retnet_buffers, retnet_settings
from export.formats.rope_fields import rope_settings
from export.formats.tensors import Tensors
from training.config import ModelConfig

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
    "silu": "silu",
    "swish": "silu",
}


@dataclass(frozen=True)
class Architecture:
    """How one `model_type` is read.

    `settings` are ModelConfig's fields from config.json; `origins` by our module; `layers` names theirs.
    One of `prefixes` stands before every name but the head's, or before none; `aliases` are names that
    another library has for the same tensor. `buffers` match what is no weight, which `check` may read.
    """

    settings: Callable[[Fields], dict[str, Any]]
    origins: Mapping[str, Origin]
    layers: str = "layers.{}."
    prefixes: tuple[str, ...] = ("model.",)
    aliases: Mapping[str, str] = field(default_factory=dict)
    buffers: re.Pattern[str] = field(default=re.compile(r".*rotary_emb\.inv_freq"))
    check: Callable[[ModelConfig, Tensors], None] = field(default=lambda config, tensors: None)

    def short(self, name: str) -> str:
        """The name by which `origins` know the tensor called `name`."""
        for prefix in self.prefixes:
            name = name.removeprefix(prefix)
        return self.aliases.get(name, name)


def _gpt2(fields: Fields) -> dict[str, Any]:
    for name, served in {"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False}.items():
        fields.require(name, fields.flag(name, served), served)
    width, heads = fields.integer("n_embd"), fields.integer("n_head")
    return {
        "vocab_size": fields.integer("vocab_size"),
        "max_length": fields.integer("n_positions", 1024),
        "d_model": width,
        "num_layers": fields.integer("n_layer"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": width // max(heads, 1),
        "d_ff": fields.integer("n_inner", 4 * width),
        "ffn": "mlp",
        "activation": _activation(fields, "activation_function", "gelu_new"),
        "norm": "layernorm",
        "norm_eps": fields.number("layer_norm_epsilon", 1e-5),
        "position": "learned",
        "biases": "all",
        "tied_head": fields.flag("tie_word_embeddings", True),
    }


def _llama(fields: Fields) -> dict[str, Any]:
    attention, mlp = fields.flag("attention_bias", False), fields.flag("mlp_bias", False)
    if mlp and not attention:
        raise ExportError(f"{fields.file}: mlp_bias without attention_bias is not supported")
    return _llama_like(fields) | {"biases": "all" if mlp else "attention" if attention else "none"}


def _mistral(fields: Fields) -> dict[str, Any]:
    # Its configuration's own default, where the key is left out; null means no window.
    window = fields.values.get("sliding_window", 4096)
    return _llama_like(fields) | {"sliding_window": window and fields.integer("sliding_window", 4096)}


def _qwen2(fields: Fields) -> dict[str, Any]:
    return _llama_like(fields) | {"biases": "qkv", "sliding_window": _qwen_window(fields)}


def _qwen3(fields: Fields) -> dict[str, Any]:
    settings = _llama_like(fields, head_dim=128)
    biases = "attention" if fields.flag("attention_bias", False) else "none"
    return settings | {"biases": biases, "sliding_window": _qwen_window(fields), "qk_norm": True}


def _mixtral(fields: Fields) -> dict[str, Any]:
    return _llama_like(fields, theta=1e6) | {
        "sliding_window": fields.integer("sliding_window") if "sliding_window" in fields else None,
        "ffn": "moe",
        "num_experts": fields.integer("num_local_experts", 8),
        "experts_per_token": fields.integer("num_experts_per_tok", 2),
    }


def _phi3(fields: Fields) -> dict[str, Any]:
    return _llama_like(fields) | {
        "sliding_window": fields.integer("sliding_window") if "sliding_window" in fields else None
    }


def _llama_like(fields: Fields, *, head_dim: int | None = None, theta: float = 10_000.0) -> dict[str, Any]:
    """What all of LLaMA's kind have in common; the defaults are those of transformers' classes."""
    fields.require("hidden_act", _activation(fields, "hidden_act", "silu"), "silu")
    width, heads = fields.integer("hidden_size"), fields.integer("num_attention_heads")
    return {
        "vocab_size": fields.integer("vocab_size"),
        "max_length": fields.integer("max_position_embeddings"),
        "d_model": width,
        "num_layers": fields.integer("num_hidden_layers"),
        "num_heads": heads,
        "num_kv_heads": fields.integer("num_key_value_heads", heads),
        "head_dim": fields.integer("head_dim", head_dim or width // max(heads, 1)),
        "d_ff": fields.integer("intermediate_size"),
        "ffn": "swiglu",
        "norm_eps": fields.number("rms_norm_eps", 1e-6),
        "tied_head": fields.flag("tie_word_embeddings", False),
        **rope_settings(fields, theta),
    }


def _qwen_window(fields: Fields) -> int | None:
    """The window of all layers; ExportError if only some have one."""
    if not fields.flag("use_sliding_window", False) or "sliding_window" not in fields:
        return None
    layers, full = fields.integer("num_hidden_layers"), fields.integer("max_window_layers", 28)
    if 0 < full < layers:
        raise ExportError(f"{fields.file}: a window in the layers from {full} on only is not supported")
    return None if full >= layers else fields.integer("sliding_window")


def _activation(fields: Fields, name: str, default: str) -> str:
    given = fields.text(name, default)
    if given not in ACTIVATIONS:
        raise ExportError(f"{fields.file}: {name} is {given!r}; supported are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[given]


def _qkv_sizes(config: ModelConfig) -> tuple[int, int, int]:
    kv = config.num_kv_heads * config.head_dim
    return config.num_heads * config.head_dim, kv, kv


def _gate_up_sizes(config: ModelConfig) -> tuple[int, int]:
    return config.d_ff, config.d_ff


GPT2_ORIGINS: dict[str, Origin] = {
    "embedding": module("wte"),
    "position": module("wpe"),
    "norm": module("ln_f"),
    "head": module("lm_head"),
    "mixer_norm": module("ln_1"),
    "mixer.query": columns("attn.c_attn", _qkv_sizes, 0),
    "mixer.key": columns("attn.c_attn", _qkv_sizes, 1),
    "mixer.value": columns("attn.c_attn", _qkv_sizes, 2),
    "mixer.out": transposed("attn.c_proj"),
    "ffn_norm": module("ln_2"),
    "ffn.up": transposed("mlp.c_fc"),
    "ffn.down": transposed("mlp.c_proj"),
}
LLAMA_ORIGINS: dict[str, Origin] = {
    "embedding": module("embed_tokens"),
    "norm": module("norm"),
    "head": module("lm_head"),
    "mixer_norm": module("input_layernorm"),
    "mixer.query": module("self_attn.q_proj"),
    "mixer.key": module("self_attn.k_proj"),
    "mixer.value": module("self_attn.v_proj"),
    "mixer.out": module("self_attn.o_proj"),
    "ffn_norm": module("post_attention_layernorm"),
    "ffn.gate": module("mlp.gate_proj"),
    "ffn.up": module("mlp.up_proj"),
    "ffn.down": module("mlp.down_proj"),
}
QWEN3_ORIGINS = LLAMA_ORIGINS | {
    "mixer.query_norm": module("self_attn.q_norm"),
    "mixer.key_norm": module("self_attn.k_norm"),
}
MIXTRAL_ORIGINS = LLAMA_ORIGINS | {
    "ffn.router": module("block_sparse_moe.gate"),
    "ffn.gate_up": interleaved_experts(
        "block_sparse_moe.experts.{}.w1.weight", "block_sparse_moe.experts.{}.w3.weight"
    ),
    "ffn.down": stacked_experts("block_sparse_moe.experts.{}.w2.weight"),
}
PHI3_ORIGINS = LLAMA_ORIGINS | {
    "mixer.query": rows("self_attn.qkv_proj", _qkv_sizes, 0),
    "mixer.key": rows("self_attn.qkv_proj", _qkv_sizes, 1),
    "mixer.value": rows("self_attn.qkv_proj", _qkv_sizes, 2),
    "ffn.gate": rows("mlp.gate_up_proj", _gate_up_sizes, 0),
    "ffn.up": rows("mlp.gate_up_proj", _gate_up_sizes, 1),
}

ARCHITECTURES: dict[str, Architecture] = {
    "gpt2": Architecture(
        _gpt2, GPT2_ORIGINS, "h.{}.", ("transformer.",), buffers=re.compile(r"h\.\d+\.attn\.(masked_)?bias")
    ),
    "llama": Architecture(_llama, LLAMA_ORIGINS),
    "mistral": Architecture(_mistral, LLAMA_ORIGINS),
    "mixtral": Architecture(_mixtral, MIXTRAL_ORIGINS),
    "phi3": Architecture(_phi3, PHI3_ORIGINS),
    "qwen2": Architecture(_qwen2, LLAMA_ORIGINS),
    "qwen3": Architecture(_qwen3, QWEN3_ORIGINS),
    "retnet": Architecture(
        retnet_settings,
        RETNET_ORIGINS,
        prefixes=("model.", "decoder."),
        aliases={"output_projection.weight": "lm_head.weight"},
        buffers=RETNET_BUFFERS,
        check=check_retnet_buffers,
    ),
}

"""RetNet as torchscale saves it, and as its port to transformers does: one architecture, two sets of names.

Source: arXiv 2307.08621, and torchscale's code since September 2023 (RMSNorm, gated feed-forward network).
"""

import re
from typing import Any

import torch
from torch import Tensor

from export.errors import ExportError
from export.formats.fields import Fields
from export.formats.origins import Origin, module, unpermuted
from export.formats.tensors import Tensors
from training.blocks.retention import decay_rates
from training.config import ModelConfig

SLOWEST = 10_000.0  # the last pair of channels turns so many times more slowly than the first
TRAINED_LENGTH = 2048  # the paper's; neither library's configuration has to say one
DECAY, ANGLE = "retnet_rel_pos.decay", "retnet_rel_pos.angle"
RTOL, ATOL = 1e-2, 1e-7  # of a buffer that was saved in half precision

# What a configuration may ask for and the decoder does not compute, with what both libraries do by default.
SERVED: dict[str, bool] = {
    "decoder_normalize_before": True,
    "use_glu": True,
    "deepnorm": False,
    "multiway": False,
    "no_output_layer": False,
}
RETNET_BUFFERS = re.compile(r"retnet_rel_pos\.(angle|decay)|version")
RETNET_ORIGINS: dict[str, Origin] = {
    "embedding": module("embed_tokens"),
    "embedding_norm": module("layernorm_embedding"),
    "norm": module("layer_norm"),
    "head": module("lm_head"),
    "mixer_norm": module("retention_layer_norm"),
    "mixer.query": unpermuted("retention.q_proj", lambda config: config.num_heads),
    "mixer.key": unpermuted("retention.k_proj", lambda config: config.num_heads),
    "mixer.value": module("retention.v_proj"),
    "mixer.gate": module("retention.g_proj"),
    "mixer.out": module("retention.out_proj"),
    "ffn_norm": module("final_layer_norm"),
    "ffn.gate": module("ffn.fc1"),
    "ffn.up": module("ffn.gate"),
    "ffn.down": module("ffn.fc2"),
}


def retnet_settings(fields: Fields) -> dict[str, Any]:
    """ModelConfig's fields; ExportError for what the decoder does not compute."""
    _refuse_others(fields)
    width, heads = fields.integer("decoder_embed_dim"), fields.integer("decoder_retention_heads")
    head_dim = _per_head(fields, "decoder_embed_dim", heads)
    shares_head = fields.flag("tie_word_embeddings", fields.flag("share_decoder_input_output_embed", False))
    return {
        "vocab_size": fields.integer("vocab_size"),
        "max_length": fields.integer("max_target_positions", TRAINED_LENGTH),
        "d_model": width,
        "num_layers": fields.integer("decoder_layers"),
        "num_heads": heads,
        "num_kv_heads": heads,
        "head_dim": head_dim,
        "value_dim": _per_head(fields, "decoder_value_embed_dim", heads),
        "d_ff": fields.integer("decoder_ffn_embed_dim"),
        "mixer": "retention",
        "ffn": "swiglu",
        "norm_eps": fields.number("layernorm_eps", 1e-6),
        "rope_theta": rotary_base(head_dim),
        "decays": "spread" if fields.flag("use_lm_decay", False) else "doubling",
        "retention_scaling": True,
        "embedding_scale": 1.0 if fields.flag("no_scale_embedding", True) else width**0.5,
        "embedding_norm": fields.flag("layernorm_embedding", False),
        "tied_head": shares_head,
    }


def rotary_base(head_dim: int) -> float:
    """Our θ for their speeds: theirs reach 1 / 10,000 in the last pair of channels, θ one pair after it."""
    pairs = head_dim // 2
    return SLOWEST ** (pairs / (pairs - 1)) if pairs > 1 else SLOWEST


def check_retnet_buffers(config: ModelConfig, tensors: Tensors) -> None:
    """ExportError if the file brings decays or angles that are other than the configuration's."""
    pairs = torch.arange(config.head_dim // 2, dtype=torch.float64)
    angles = config.rope_theta ** (-2 * pairs / config.head_dim)
    expected = {
        DECAY: decay_rates(config.num_heads, config.decays).log(),
        ANGLE: angles.repeat_interleave(2),
    }
    for name, values in expected.items():
        if name in tensors.infos and not _is_close(tensors.read(name), values.float()):
            raise ExportError(f"{name} is not what the configuration says: the model was made by other code")


def _is_close(found: Tensor, expected: Tensor) -> bool:
    return found.shape == expected.shape and torch.allclose(found, expected, RTOL, ATOL)


def _refuse_others(fields: Fields) -> None:
    for name, served in SERVED.items():
        fields.require(name, fields.flag(name, served), served)
    fields.require("activation_fn", fields.text("activation_fn", "gelu"), "swish")
    fields.require("moe_freq", fields.integer("moe_freq", 0), 0)


def _per_head(fields: Fields, name: str, heads: int) -> int:
    width = fields.integer(name)
    if heads < 1 or width % heads:
        raise ExportError(f"{fields.file}: {name} is {width}, which is not a multiple of {heads} heads")
    return width // heads

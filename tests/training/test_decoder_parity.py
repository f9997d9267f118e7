"""The same random weights in `transformers` and in Decoder give the same logits."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from training.config import ModelConfig
from training.decoder import Decoder

SIZES: dict[str, Any] = {
    "vocab_size": 128,
    "max_length": 64,
    "d_model": 64,
    "num_layers": 3,
    "num_heads": 4,
    "head_dim": 16,
    "d_ff": 96,
    "mixer": "attention",
}
LLAMA: dict[str, Any] = SIZES | {"num_kv_heads": 2, "ffn": "swiglu", "norm_eps": 1e-6, "rope_theta": 5e4}
GPT2: dict[str, Any] = SIZES | {
    "num_kv_heads": 4,
    "ffn": "mlp",
    "norm": "layernorm",
    "position": "learned",
    "biases": "all",
}
# our name -> theirs, per layer
LLAMA_LAYER = {
    "mixer_norm": "input_layernorm",
    "mixer.query": "self_attn.q_proj",
    "mixer.key": "self_attn.k_proj",
    "mixer.value": "self_attn.v_proj",
    "mixer.out": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
GPT2_LAYER = {
    "mixer_norm": "ln_1",
    "mixer.out": "attn.c_proj",
    "ffn_norm": "ln_2",
    "ffn.up": "mlp.c_fc",
    "ffn.down": "mlp.c_proj",
}


def llama_tensors(theirs: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    yield "embedding.weight", theirs["model.embed_tokens.weight"]
    yield "norm.weight", theirs["model.norm.weight"]
    yield "head.weight", theirs["lm_head.weight"]
    for layer in range(SIZES["num_layers"]):
        for ours, other in LLAMA_LAYER.items():
            for kind in ("weight", "bias"):
                if (name := f"model.layers.{layer}.{other}.{kind}") in theirs:
                    yield f"layers.{layer}.{ours}.{kind}", theirs[name]


def transposed(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.ndim == 2 else tensor


def gpt2_tensors(theirs: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """GPT-2 stores its linear layers transposed, and query, key and value in one."""
    yield "embedding.weight", theirs["transformer.wte.weight"]
    yield "position.weight", theirs["transformer.wpe.weight"]
    for kind in ("weight", "bias"):
        yield f"norm.{kind}", theirs[f"transformer.ln_f.{kind}"]
        for layer in range(SIZES["num_layers"]):
            prefix = f"transformer.h.{layer}"
            for ours, other in GPT2_LAYER.items():
                yield f"layers.{layer}.{ours}.{kind}", transposed(theirs[f"{prefix}.{other}.{kind}"])
            parts = theirs[f"{prefix}.attn.c_attn.{kind}"].chunk(3, dim=-1)
            for ours, part in zip(("query", "key", "value"), parts, strict=True):
                yield f"layers.{layer}.mixer.{ours}.{kind}", transposed(part)


def llama_settings(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e4},
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
    } | changes


def gpt2() -> transformers.PreTrainedModel:
    config = transformers.GPT2Config(
        vocab_size=128,
        n_positions=64,
        n_embd=64,
        n_layer=3,
        n_head=4,
        n_inner=96,
        attn_implementation="eager",
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config)


def llama() -> transformers.PreTrainedModel:
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**llama_settings()))


def qwen2() -> transformers.PreTrainedModel:
    settings = llama_settings(tie_word_embeddings=True)
    return transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**settings))


def mistral() -> transformers.PreTrainedModel:
    settings = llama_settings(head_dim=32, sliding_window=None)
    return transformers.MistralForCausalLM(transformers.MistralConfig(**settings))


@pytest.mark.parametrize(
    ("make", "fields", "tensors"),
    [
        (gpt2, GPT2, gpt2_tensors),
        (llama, LLAMA | {"tied_head": False}, llama_tensors),
        (qwen2, LLAMA | {"biases": "qkv"}, llama_tensors),
        (mistral, LLAMA | {"tied_head": False, "head_dim": 32}, llama_tensors),
    ],
)
def test_logits_equal_those_of_transformers(make: Any, fields: dict[str, Any], tensors: Any) -> None:
    """Every weight is random, biases and norms too. 1e-4: float32 over three layers, measured below 3e-6."""
    theirs = make().eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=0.1)
    config = ModelConfig(**fields)
    ours = Decoder.from_tensors(config, dict(tensors(theirs.state_dict())))
    ids = torch.randint(0, 128, (2, 64))
    with torch.no_grad():
        expected, (actual, _) = theirs(ids).logits, ours(ids)
    assert expected.std() > 0.5
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)

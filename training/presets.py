"""Named model configurations."""

from training.config import ModelConfig

PRESETS: dict[str, ModelConfig] = {
    # 3.4 M parameters; what `make train` teaches geography and small talk.
    "atlas": ModelConfig(
        vocab_size=1536,
        max_length=1024,
        d_model=192,
        num_layers=4,
        num_heads=4,
        num_kv_heads=4,
        head_dim=32,
        value_dim=64,
        d_ff=256,
        mixer="retention",
        ffn="moe",
        position="none",
        num_experts=4,
        experts_per_token=2,
    ),
    "llama-tiny": ModelConfig(
        vocab_size=256,
        max_length=128,
        d_model=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        d_ff=128,
        mixer="attention",
        ffn="swiglu",
    ),
    "gpt2-tiny": ModelConfig(
        vocab_size=256,
        max_length=128,
        d_model=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        d_ff=256,
        mixer="attention",
        ffn="mlp",
        norm="layernorm",
        position="learned",
        biases="all",
    ),
    "retnet-moe-tiny": ModelConfig(
        vocab_size=256,
        max_length=256,
        d_model=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        value_dim=64,
        d_ff=64,
        mixer="retention",
        ffn="moe",
        position="none",
        num_experts=4,
        experts_per_token=2,
    ),
}


def preset(name: str) -> ModelConfig:
    """The configuration called `name`; KeyError lists the known ones."""
    if name not in PRESETS:
        raise KeyError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]

"""Named model configurations."""

from training.config import ModelConfig


def _arslm(
    *, vocab_size: int, max_length: int, d_model: int, num_layers: int, num_heads: int, d_ff: int
) -> ModelConfig:
    """Gated attention as ARSLM has it: norms after the additions, learned positions, a head of its own."""
    return ModelConfig(
        vocab_size=vocab_size,
        max_length=max_length,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=d_ff,
        mixer="gated_attention",
        ffn="mlp",
        activation="gelu",
        norm="layernorm",
        norm_placement="post",
        position="learned",
        biases="all",
        tied_head=False,
        head_bias=True,
    )


def _gpt2(*, vocab_size: int, max_length: int, d_model: int, num_layers: int, num_heads: int) -> ModelConfig:
    """GPT-2 in other sizes."""
    return ModelConfig(
        vocab_size=vocab_size,
        max_length=max_length,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=num_heads,
        num_kv_heads=num_heads,
        head_dim=d_model // num_heads,
        d_ff=4 * d_model,
        mixer="attention",
        ffn="mlp",
        norm="layernorm",
        position="learned",
        biases="all",
    )


def _tars(
    *, d_model: int, num_layers: int, head_dim: int, vocab_size: int = 32_000, max_length: int = 4096
) -> ModelConfig:
    """LLaMA with as many key heads as query heads, a feed-forward network four times the width, a tied head.

    The names tars-1b to tars-70b are the labels that these sizes were given; their true counts are smaller,
    but for the last: 0.138, 0.435, 2.21, 4.28, 16.2 and 86.2 billion.
    """
    return ModelConfig(
        vocab_size=vocab_size,
        max_length=max_length,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=d_model // head_dim,
        num_kv_heads=d_model // head_dim,
        head_dim=head_dim,
        d_ff=4 * d_model,
        mixer="attention",
        ffn="swiglu",
    )


def _bayesian(
    *, vocab_size: int, max_length: int, d_model: int, num_layers: int, head_dim: int, num_statistics: int
) -> ModelConfig:
    """A LLaMA whose attention keeps sufficient statistics beside it."""
    return ModelConfig(
        vocab_size=vocab_size,
        max_length=max_length,
        d_model=d_model,
        num_layers=num_layers,
        num_heads=d_model // head_dim,
        num_kv_heads=d_model // head_dim,
        head_dim=head_dim,
        d_ff=3 * d_model,
        num_statistics=num_statistics,
        mixer="bayesian_attention",
        ffn="swiglu",
    )


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
    "arslm-base": _arslm(
        vocab_size=50_000, max_length=512, d_model=512, num_layers=6, num_heads=8, d_ff=2048
    ),
    "arslm-tiny": _arslm(vocab_size=256, max_length=128, d_model=64, num_layers=2, num_heads=2, d_ff=256),
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
    "gpt2-tiny": _gpt2(vocab_size=256, max_length=128, d_model=64, num_layers=2, num_heads=2),
    "dialogpt-medium": _gpt2(vocab_size=50_257, max_length=1024, d_model=1024, num_layers=24, num_heads=16),
    "mini-claude-tiny": _gpt2(vocab_size=512, max_length=256, d_model=128, num_layers=2, num_heads=4),
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
    "bayesian-base": _bayesian(
        vocab_size=50_257, max_length=1024, d_model=768, num_layers=12, head_dim=64, num_statistics=64
    ),
    "bayesian-tiny": _bayesian(
        vocab_size=256, max_length=256, d_model=64, num_layers=2, head_dim=32, num_statistics=16
    ),
    # The retention network's paper: values twice as wide as keys, a feed-forward network of twice the width.
    "retnet-base": ModelConfig(
        vocab_size=50_257,
        max_length=2048,
        d_model=1536,
        num_layers=24,
        num_heads=12,
        num_kv_heads=12,
        head_dim=128,
        value_dim=256,
        d_ff=3072,
        mixer="retention",
        ffn="mlp",
        activation="gelu",
        position="none",
    ),
    "moe-base": ModelConfig(
        vocab_size=50_257,
        max_length=2048,
        d_model=1536,
        num_layers=24,
        num_heads=12,
        num_kv_heads=12,
        head_dim=128,
        d_ff=4096,
        mixer="attention",
        ffn=("swiglu", "moe") * 12,
        num_experts=8,
        experts_per_token=2,
    ),
    "tars-tiny": _tars(d_model=64, num_layers=2, head_dim=32, vocab_size=512, max_length=256),
    "tars-1b": _tars(d_model=768, num_layers=12, head_dim=64),
    "tars-3b": _tars(d_model=1024, num_layers=24, head_dim=64),
    "tars-7b": _tars(d_model=2048, num_layers=32, head_dim=128),
    "tars-13b": _tars(d_model=2560, num_layers=40, head_dim=128),
    "tars-30b": _tars(d_model=4096, num_layers=60, head_dim=128),
    "tars-70b": _tars(d_model=8192, num_layers=80, head_dim=128),
}


def preset(name: str) -> ModelConfig:
    """The configuration called `name`; KeyError lists the known ones."""
    if name not in PRESETS:
        raise KeyError(f"unknown preset {name!r}; known: {', '.join(sorted(PRESETS))}")
    return PRESETS[name]

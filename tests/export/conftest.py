"""Small decoders with random weights, and their graphs, written once per session."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from export.graph import graph_from_decoder
from tests.once import once, shared_directory
from training.config import ModelConfig, RopeScaling
from training.decoder import Decoder

GraphOf = Callable[..., Path]

# The tracer writes a record per traced value for whoever listens, and pytest's log capture listens.
logging.getLogger("torch.__trace").propagate = False

CONFIGS: dict[str, ModelConfig] = {
    "attention": ModelConfig(
        vocab_size=97,
        max_length=96,
        d_model=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=64,
        d_ff=96,
        mixer="attention",
        ffn="swiglu",
    ),
    "windowed": ModelConfig(
        vocab_size=97,
        max_length=96,
        d_model=64,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=32,
        d_ff=96,
        mixer="attention",
        ffn="swiglu",
        biases="attention",
        qk_norm=True,
        sliding_window=11,
        rope_scaling=RopeScaling(kind="llama3", factor=4, original_length=32),
    ),
    "learned_positions": ModelConfig(
        vocab_size=97,
        max_length=96,
        d_model=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        d_ff=128,
        mixer="attention",
        ffn="mlp",
        norm="layernorm",
        position="learned",
        biases="all",
        tied_head=False,
        head_bias=True,
    ),
    "retention_moe": ModelConfig(
        vocab_size=97,
        max_length=96,
        d_model=64,
        num_layers=2,
        num_heads=2,
        num_kv_heads=2,
        head_dim=32,
        value_dim=64,
        d_ff=32,
        mixer="retention",
        ffn="moe",
        position="none",
        num_experts=4,
        experts_per_token=2,
    ),
}


def make_decoder(name: str) -> Decoder:
    """Random weights, none of them at a value such as one or zero that would hide its absence."""
    torch.manual_seed(0)
    decoder = Decoder(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter_name, parameter in decoder.named_parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            if "router" in parameter_name:
                parameter.mul_(50)  # clear choices: near a tie a rounding error picks another expert
    return decoder


@pytest.fixture(scope="session")
def decoders() -> dict[str, Decoder]:
    """Rotary `attention` with grouped heads, `windowed` with all else that attention knows, GPT-2's
    `learned_positions`, and `retention_moe`.
    """
    return {name: make_decoder(name) for name in CONFIGS}


@pytest.fixture(scope="session")
def graph_of(decoders: dict[str, Decoder], tmp_path_factory: pytest.TempPathFactory) -> GraphOf:
    """The graph of a named decoder by a lowering and a dtype; written at the first call."""
    shared = shared_directory(tmp_path_factory)

    def graph(name: str, lowering: str, dtype: str = "float32") -> Path:
        def write(directory: Path) -> None:
            graph_from_decoder(decoders[name], directory / "model.onnx", lowering=lowering, dtype=dtype)

        return once(shared / f"{name}.{lowering}.{dtype}", write) / "model.onnx"

    return graph

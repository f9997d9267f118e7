"""Random RetNets as both libraries save them, and their logits by the paper's formulas, in float64.

The reference shares nothing with the decoder: pairs of channels are complex numbers, scores are normalised as
in section 2.1 of arXiv 2307.08621, and the recurrent form carries torchscale's running scale.
"""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.export.hf_models import VOCABULARY, write_tokenizer

Layout = Callable[[str], str]
EPS = 1e-6


def as_port(name: str) -> str:
    """The names in the port to transformers."""
    return name.replace("output_projection", "lm_head") if "output_" in name else f"model.{name}"


LAYOUTS: dict[str, Layout] = {
    "torchscale": lambda name: name,
    "fairseq": lambda name: f"decoder.{name}",
    "port": as_port,
}


@dataclass(frozen=True)
class RetNet:
    """A model of `layers` layers; `settings` are what config.json says besides its sizes."""

    width: int = 64
    heads: int = 2
    value_width: int = 96
    inner: int = 80
    layers: int = 2
    normalised_embedding: bool = False
    scaled_embedding: bool = False
    spread_decays: bool = False
    tied: bool = False
    size: float = 0.1

    def config(self) -> dict[str, Any]:
        """config.json, in the names that both libraries use."""
        return {
            "model_type": "retnet",
            "vocab_size": VOCABULARY,
            "decoder_embed_dim": self.width,
            "decoder_value_embed_dim": self.value_width,
            "decoder_retention_heads": self.heads,
            "decoder_ffn_embed_dim": self.inner,
            "decoder_layers": self.layers,
            "activation_fn": "swish",
            "layernorm_embedding": self.normalised_embedding,
            "no_scale_embedding": not self.scaled_embedding,
            "use_lm_decay": self.spread_decays,
            "tie_word_embeddings": self.tied,
            "layernorm_eps": EPS,
        }

    def decays(self) -> Tensor:
        """γ of each head."""
        if self.spread_decays:
            ends = math.log(1 / 32), math.log(1 / 512)
            return 1 - torch.linspace(*ends, self.heads, dtype=torch.float64).exp()
        return 1 - 2.0 ** (-5 - torch.arange(self.heads, dtype=torch.float64))

    def angles(self) -> Tensor:
        """Radians per token of each pair of channels."""
        return 10_000 ** -torch.linspace(0, 1, self.width // self.heads // 2, dtype=torch.float64)

    def tensors(self) -> dict[str, Tensor]:
        """All that torchscale's state_dict holds, weights of standard deviation `size`, norms around 1."""
        torch.manual_seed(0)
        C, V, F = self.width, self.value_width, self.inner
        shapes: dict[str, tuple[int, ...]] = {
            "embed_tokens.weight": (VOCABULARY, C),
            "layer_norm.weight": (C,),
        }
        if not self.tied:
            shapes["output_projection.weight"] = (VOCABULARY, C)
        if self.normalised_embedding:
            shapes["layernorm_embedding.weight"] = (C,)
        for layer in range(self.layers):
            prefix = f"layers.{layer}"
            shapes |= {f"{prefix}.retention.{part}_proj.weight": (C, C) for part in "qk"}
            shapes |= {f"{prefix}.retention.{part}_proj.weight": (V, C) for part in "vg"}
            shapes[f"{prefix}.retention.out_proj.weight"] = (C, V)
            shapes |= {f"{prefix}.{name}_layer_norm.weight": (C,) for name in ("retention", "final")}
            shapes |= {f"{prefix}.ffn.{name}.weight": (F, C) for name in ("fc1", "gate")}
            shapes[f"{prefix}.ffn.fc2.weight"] = (C, F)
        weights = {
            name: self.size * torch.randn(shape) + float(len(shape) == 1) for name, shape in shapes.items()
        }
        buffers = {"decay": self.decays().log(), "angle": self.angles().repeat_interleave(2)}
        return weights | {f"retnet_rel_pos.{name}": buffer.float() for name, buffer in buffers.items()}

    def write(self, directory: Path, layout: str, **config: Any) -> Path:
        """The directory, with the tiny tokenizer; torchscale's weights are a file of torch.save."""
        named = {LAYOUTS[layout](name): tensor for name, tensor in self.tensors().items()}
        if layout == "port":
            save_file(named, directory / "model.safetensors")
        else:
            torch.save({"model": named}, directory / "pytorch_model.bin")
        (directory / "config.json").write_text(json.dumps(self.config() | config))
        write_tokenizer(directory)
        return directory


MODELS = {
    "plain": RetNet(),
    "four-heads": RetNet(width=128, heads=4, value_width=128, spread_decays=True),
    "published": RetNet(normalised_embedding=True, scaled_embedding=True, layers=1),
    "tied": RetNet(tied=True, scaled_embedding=True),
    "one-pair-a-head": RetNet(width=8, heads=4, value_width=16, size=0.3),
}
# Values as small as after torchscale's initialisation: the norm's eps is then no small matter.
SMALL = replace(MODELS["plain"], size=0.02)


def logits(model: RetNet, ids: Tensor, *, recurrent: bool) -> Tensor:
    """Logits (T, V) of `ids` (T,) in the parallel or in the recurrent form."""
    w = {name: tensor.double() for name, tensor in model.tensors().items()}
    x = w["embed_tokens.weight"][ids] * (model.width**0.5 if model.scaled_embedding else 1)
    if model.normalised_embedding:
        x = _rms(x) * w["layernorm_embedding.weight"]
    retain = _recurrent if recurrent else _parallel
    for layer in range(model.layers):
        own = {name.removeprefix(f"layers.{layer}."): tensor for name, tensor in w.items()}
        x = x + _retention(model, _rms(x) * own["retention_layer_norm.weight"], own, retain)
        h = _rms(x) * own["final_layer_norm.weight"]
        gate = torch.nn.functional.silu(h @ own["ffn.fc1.weight"].T)
        x = x + (gate * (h @ own["ffn.gate.weight"].T)) @ own["ffn.fc2.weight"].T
    head = w["embed_tokens.weight" if model.tied else "output_projection.weight"]
    return (_rms(x) * w["layer_norm.weight"]) @ head.T


Retain = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def _retention(model: RetNet, x: Tensor, w: dict[str, Tensor], retain: Retain) -> Tensor:
    T, H = len(x), model.heads
    q, k, v, g = (x @ w[f"retention.{part}_proj.weight"].T for part in "qkvg")
    turns = torch.polar(torch.ones((), dtype=torch.float64), torch.arange(T)[:, None] * model.angles())
    q, k = (torch.view_as_complex(part.view(T, H, -1, 2)) * turns[:, None] for part in (q, k))
    k = k / (model.width / H) ** 0.5
    o = torch.stack(
        [retain(q[:, h], k[:, h], v.view(T, H, -1)[:, h], gamma) for h, gamma in enumerate(model.decays())],
        dim=1,
    )
    return (torch.nn.functional.silu(g) * _rms(o).flatten(1)) @ w["retention.out_proj.weight"].T


def _parallel(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """The three normalisations of scores: by √d (in k), by the root of D's row sums, by their own sums."""
    ages = torch.arange(len(q))[:, None] - torch.arange(len(q))
    D = torch.where(ages >= 0, gamma ** ages.clamp(min=0), 0)
    scores = (q @ k.mH).real * D / D.sum(1, keepdim=True).sqrt()
    return scores / scores.sum(1, keepdim=True).abs().clamp(min=1) @ v


def _recurrent(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor) -> Tensor:
    """A state that is kept divided by the root of its decays' sum."""
    state, scale = torch.zeros(k.shape[1], v.shape[1], dtype=k.dtype), torch.zeros((), dtype=torch.float64)
    outputs = []
    for q_n, k_n, v_n in zip(q, k, v, strict=True):
        before, scale = scale, scale * gamma + 1
        state = state * (before / scale).sqrt() * gamma + k_n.conj()[:, None] * v_n / scale.sqrt()
        outputs.append((q_n @ state).real)
    return torch.stack(outputs)


def _rms(x: Tensor) -> Tensor:
    return x / (x.square().mean(-1, keepdim=True) + EPS).sqrt()

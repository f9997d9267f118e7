"""Where each tensor of a decoder comes from in another library's naming."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from export.formats.tensors import Source, expected_shapes
from training.config import ModelConfig

# From the configuration and "weight" or "bias" to the source, its names relative to the layer's.
Origin = Callable[[ModelConfig, str], Source]
LAYER = re.compile(r"(layers\.\d+\.)(.+)")


def sources_for(config: ModelConfig, origins: Mapping[str, Origin], layers: str) -> dict[str, Source]:
    """The source of every tensor of the decoder; their layers are called `layers` with `{}` for the number.

    `origins` are by our module, for a layer's without the layer.
    """
    return {name: _source(config, name, origins, layers) for name in expected_shapes(config)}


def _source(config: ModelConfig, name: str, origins: Mapping[str, Origin], layers: str) -> Source:
    found = LAYER.fullmatch(name)
    module, _, kind = (found[2] if found else name).rpartition(".")
    # Experts are parameters, not modules, and have no kind.
    source = origins[module](config, kind) if module in origins else origins[f"{module}.{kind}"](config, "")
    prefix = layers.format(found[1].split(".")[1]) if found else ""
    return Source(tuple(prefix + theirs for theirs in source.names), source.build)


def module(name: str) -> Origin:
    """The same tensors under the name `name`."""
    return lambda _, kind: Source((f"{name}.{kind}",))


def transposed(name: str) -> Origin:
    """GPT-2's linear layers, which store (in, out)."""
    return lambda _, kind: Source((f"{name}.{kind}",), lambda tensors: _transpose(next(tensors)))


def unpermuted(name: str, heads: Callable[[ModelConfig], int]) -> Origin:
    """Query or key, whose rotated pairs of channels lie beside each other; ours lie half a head apart."""
    return lambda config, kind: Source(
        (f"{name}.{kind}",), lambda tensors: unpermute(next(tensors), heads(config))
    )


def rows(name: str, sizes: Callable[[ModelConfig], Sequence[int]], index: int) -> Origin:
    """Part `index` of a linear layer that computes several at once, of so many rows each."""
    return lambda config, kind: Source(
        (f"{name}.{kind}",), lambda tensors: _part(next(tensors), sizes(config), index)
    )


def columns(name: str, sizes: Callable[[ModelConfig], Sequence[int]], index: int) -> Origin:
    """The same of a layer that stores (in, out), as GPT-2's."""
    return lambda config, kind: Source(
        (f"{name}.{kind}",), lambda tensors: _part(_transpose(next(tensors)), sizes(config), index)
    )


def stacked_experts(name: str) -> Origin:
    """(E, …): one tensor per expert, `name` with `{}` for its number, put together."""
    return lambda config, _: Source(
        tuple(name.format(expert) for expert in range(config.num_experts)),
        lambda tensors: _stack(tensors, config.num_experts, interleave=1),
    )


def interleaved_experts(gate: str, up: str) -> Origin:
    """(E, 2F, C): row 2i of an expert is gate i, row 2i+1 is up i."""
    return lambda config, _: Source(
        tuple(part.format(expert) for expert in range(config.num_experts) for part in (gate, up)),
        lambda tensors: _stack(tensors, config.num_experts, interleave=2),
    )


def _transpose(tensor: Tensor) -> Tensor:
    return tensor.T if tensor.ndim == 2 else tensor


def unpermute(values: Tensor, num_heads: int) -> Tensor:
    """Rows of q or k from pairs beside each other to half-split pairs: (H·D, …) -> (H·D, …).

    Rows that are no whole pairs of so many heads are left as they are, so that their shape is refused.
    """
    rows, *rest = values.shape
    if rows % (2 * num_heads):
        return values
    pairs = values.reshape(num_heads, rows // num_heads // 2, 2, *rest)
    return pairs.swapaxes(1, 2).reshape(rows, *rest)


def _part(tensor: Tensor, sizes: Sequence[int], index: int) -> Tensor:
    """Rows of a part; the whole tensor where the sizes do not add up, so that its shape is refused."""
    return torch.split(tensor, list(sizes))[index] if tensor.shape[0] == sum(sizes) else tensor


def _stack(tensors: Iterator[Tensor], num_experts: int, *, interleave: int) -> Tensor:
    """(E, interleave * rows, columns), filled tensor by tensor; what is no matrix is left to be refused."""
    first = next(tensors)
    if first.ndim != 2:
        return first
    stacked = torch.empty(num_experts, first.shape[0], interleave, first.shape[1])
    for index in range(num_experts * interleave):
        stacked[index // interleave, :, index % interleave] = first if index == 0 else next(tensors)
    return stacked.flatten(1, 2)

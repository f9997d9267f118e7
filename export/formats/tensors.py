"""Named tensors in files, read one at a time, and how a decoder is made of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from export.errors import ExportError
from training.config import ModelConfig
from training.decoder import Decoder

# One float64 table of angles is then half a gigabyte.
MAX_ROTARY_ANGLES = 1 << 26
MAX_WIDTH = 1 << 20


@dataclass(frozen=True)
class TensorInfo:
    """What a file says about a tensor; `dtype` is the file's own name for it."""

    shape: tuple[int, ...]
    dtype: str


class Tensors(Protocol):
    """The tensors of a checkpoint by name."""

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """What there is."""
        ...

    def read(self, name: str) -> Tensor:
        """One of them in float32, in memory of its own. Raises ExportError if it cannot be had."""
        ...


@dataclass(frozen=True)
class Source:
    """One tensor of ours: the names of theirs that it is made of, and how. By default it is the only one.

    Tensors that one of ours is made of have one shape.
    """

    names: tuple[str, ...]
    build: Callable[[Iterator[Tensor]], Tensor] = next


def decoder_from_sources(config: ModelConfig, sources: Mapping[str, Source], tensors: Tensors) -> Decoder:
    """The decoder, made tensor by tensor: beside itself it needs memory for what one tensor is made of.

    `sources` are by our names. Raises ExportError for a missing tensor, a wrong shape and a value that is no
    number.
    """
    require_names({name for source in sources.values() for name in source.names}, tensors.infos)
    shapes = expected_shapes(config)
    weights = {}
    for ours, source in sources.items():
        _require_alike(source.names, tensors.infos)
        weight = _compact(source.build(map(tensors.read, source.names)))
        if weight.shape != shapes[ours]:
            raise ExportError(
                f"{source.names[0]} has the shape {_dims(tensors.infos[source.names[0]].shape)}, which makes "
                f"{ours} {_dims(weight.shape)}; the configuration asks for {_dims(shapes[ours])}"
            )
        _require_finite(weight, source.names[0])
        weights[ours] = weight
    return Decoder.from_tensors(config, weights)


def require_names(needed: Iterable[str], found: Iterable[str]) -> None:
    """ExportError that names the first of the tensors that are needed and not there."""
    missing = sorted(set(needed) - set(found))
    if missing:
        raise ExportError(f"the file lacks {len(missing)} tensors, first {missing[0]}")


def refuse_unknown(known: Iterable[str], found: Iterable[str]) -> None:
    """ExportError that names the first of the tensors that nothing here knows what to do with."""
    unknown = sorted(set(found) - set(known))
    if unknown:
        raise ExportError(f"the file has {len(unknown)} unknown tensors, first {unknown[0]}")


def expected_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shapes by our names; ExportError for a configuration too large to be true."""
    if config.needs_rotary and config.max_length * config.head_dim // 2 > MAX_ROTARY_ANGLES:
        raise ExportError(
            f"a context of {config.max_length} tokens with heads of {config.head_dim} is too long: tables of "
            f"at most {MAX_ROTARY_ANGLES} angles are made"
        )
    sizes = ("vocab_size", "d_model", "d_ff", "num_heads", "head_dim", "value_dim", "num_experts")
    for name in sizes:
        if (getattr(config, name) or 0) > MAX_WIDTH:
            raise ExportError(f"{name} is {getattr(config, name)}; at most {MAX_WIDTH} is supported")
    with torch.device("meta"):
        return {name: tensor.shape for name, tensor in Decoder(config).own_tensors().items()}


def _require_alike(names: Sequence[str], infos: Mapping[str, TensorInfo]) -> None:
    for name in names[1:]:
        if infos[name].shape != infos[names[0]].shape:
            given = f"{_dims(infos[names[0]].shape)} and {_dims(infos[name].shape)}"
            raise ExportError(f"{names[0]} and {name} have the shapes {given}; they must be alike")


def _compact(tensor: Tensor) -> Tensor:
    """The tensor in memory that holds nothing else."""
    tensor = tensor.contiguous()
    is_part = tensor.untyped_storage().nbytes() > tensor.numel() * tensor.element_size()
    return tensor.clone() if is_part else tensor


def _require_finite(tensor: Tensor, name: str) -> None:
    low, high = tensor.aminmax()
    if not (low.isfinite() and high.isfinite()):
        raise ExportError(f"{name} holds values that are no finite numbers: the file is damaged")


def _dims(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "of a scalar"

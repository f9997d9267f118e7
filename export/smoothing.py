"""Makes input channels of like size before quantization: SmoothQuant (arXiv 2211.10438).

The fast kernels also quantize activations, to int8 by blocks, so one large channel makes its neighbours
coarse. Here each input channel is divided by a factor where it is produced, and the weights that read it are
multiplied by the same: in float32 the model computes the same function. Weights that came on a 4-bit grid
would leave it, which costs far more than the activations' rounding, so for int4 they are spared.
"""

import argparse
import datetime
import decimal
import heapq
import random
import statistics
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from export.blockwise import fitting_block
from export.grids import found_grid
from training.config import ModelConfig
from training.decoder import Decoder

STRENGTH = 0.5  # 0 leaves the activations as they are, 1 leaves the weights as they are
SMALLEST = 1e-5
CALIBRATION_TOKENS = 512
# Prose that every installation has, and that is not the text on which quality is measured.
CALIBRATION_TEXT = "\n".join(
    str(text)
    for text in (
        heapq.__about__,
        statistics.__doc__,
        argparse.__doc__,
        decimal.__doc__,
        random.__doc__,
        datetime.__doc__,
    )
)


# The linear layers that read a pre-norm's output, by mixer and feed-forward network: all that read it.
READERS = {
    "attention": ("query", "key", "value"),
    "retention": ("query", "key", "value", "gate"),
    "mlp": ("up",),
    "swiglu": ("gate", "up"),
}


@dataclass(frozen=True)
class Channels:
    """A vector inside the model: the module whose rows produce it, and the linear layers that read it.

    Each channel is read `repeats` times in a row of `width` channels: value heads are shared by query heads.
    """

    producer: str
    readers: tuple[str, ...]
    width: int = 1
    repeats: int = 1


def on_grids(decoder: Decoder, block_size: int) -> frozenset[str]:
    """The layers' linear parts whose weights all lie on 4-bit grids by blocks, by name."""
    return frozenset(
        name
        for name, module in decoder.layers.named_modules(prefix="layers")
        if isinstance(module, nn.Linear)
        and found_grid(module.weight.detach().numpy(), fitting_block(module.in_features, block_size))
    )


def smooth(decoder: Decoder, tokenizer: str, spared: Set[str] = frozenset()) -> Decoder:
    """The same function with evener channels; `tokenizer` is the text of tokenizer.json.

    Channels that a linear layer of `spared` reads stay as they are. A tied head becomes a weight of its own:
    the embedding's rows stay as they are.
    """
    ids = Tokenizer.from_str(tokenizer).encode(CALIBRATION_TEXT, add_special_tokens=False).ids
    peaks = input_peaks(decoder, ids[: min(CALIBRATION_TOKENS, decoder.config.max_length)])
    weights = dict(decoder.state_dict())
    for channels in smoothable(decoder.config):
        if not spared.isdisjoint(channels.readers):
            continue
        readers = [f"{name}.weight" for name in channels.readers]
        factor, read_factor = factors(channels, peaks, [weights[name] for name in readers])
        for name in (f"{channels.producer}.weight", f"{channels.producer}.bias"):
            if name in weights:
                weights[name] = weights[name] / factor.view(-1, *[1] * (weights[name].ndim - 1))
        for name in readers:
            weights[name] = weights[name] * read_factor
    return Decoder.from_tensors(decoder.config.model_copy(update={"tied_head": False}), weights)


def smoothable(config: ModelConfig) -> Iterator[Channels]:
    """Every vector that only linear layers read; a post-norm's output is also the residual stream."""
    is_pre = config.norm_placement == "pre"
    for layer, (mixer, ffn) in enumerate(zip(config.mixers, config.ffns, strict=True)):
        prefix = f"layers.{layer}"
        for part, kind in (("mixer", mixer), ("ffn", ffn)):
            if is_pre and kind in READERS:
                readers = tuple(f"{prefix}.{part}.{name}" for name in READERS[kind])
                yield Channels(f"{prefix}.{part}_norm", readers)
        if mixer == "attention":
            shared = config.num_heads // config.num_kv_heads
            yield Channels(f"{prefix}.mixer.value", (f"{prefix}.mixer.out",), config.head_dim, shared)
        if ffn == "swiglu":
            yield Channels(f"{prefix}.ffn.up", (f"{prefix}.ffn.down",))
    if is_pre:
        yield Channels("norm", ("head",))


def factors(
    channels: Channels, peaks: Mapping[str, Tensor], readers: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """What the producer's rows (P,) are divided and the readers' columns (P * repeats,) multiplied by.

    peak^α / largest weight^(1-α), the paper's equation 4, with geometric mean 1.
    """
    columns = torch.stack([weight.abs().amax(dim=0) for weight in readers]).amax(dim=0)  # (P * repeats,)
    peak = _over_repeats(peaks[channels.readers[0]], channels)
    largest = _over_repeats(columns, channels)
    factor = peak.clamp(min=SMALLEST) ** STRENGTH / largest.clamp(min=SMALLEST) ** (1 - STRENGTH)
    factor = factor / factor.log().mean().exp()  # (P,)
    repeated = factor.view(-1, 1, channels.width).expand(-1, channels.repeats, -1)
    return factor, repeated.flatten()


def _over_repeats(columns: Tensor, channels: Channels) -> Tensor:
    return columns.view(-1, channels.repeats, channels.width).amax(dim=1).flatten()


def input_peaks(decoder: Decoder, ids: list[int]) -> dict[str, Tensor]:
    """Largest |input| per channel of every linear layer, by its name, over the tokens `ids`."""
    peaks: dict[str, Tensor] = {}

    def record(name: str) -> torch.utils.hooks.RemovableHandle:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            peaks[name] = inputs[0].abs().flatten(0, -2).amax(dim=0)

        return decoder.get_submodule(name).register_forward_pre_hook(hook)

    linear = [name for name, module in decoder.named_modules() if isinstance(module, nn.Linear)]
    handles = [record(name) for name in linear]
    try:
        with torch.inference_mode():
            decoder(torch.tensor([ids]))
    finally:
        for handle in handles:
            handle.remove()
    return peaks

"""A model's predictions on held-out batches, token by token, and the figures that sum them up."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

from training.blocks.router import LoadFigures, describe_load, summarize_routing
from training.calibration import brier_terms, expected_calibration_error, spearman
from training.data.batches import IGNORED, Batch
from training.decoder import Decoder


@dataclass(frozen=True)
class Predictions:
    """One entry for each learned token, (N,) each; `load` (expert layers, E) is over all valid tokens.

    `confidence` is the likeliest token's probability, `extras` the model's own figures by name.
    """

    targets: Tensor
    nll: Tensor
    confidence: Tensor
    is_right: Tensor
    brier: Tensor
    extras: dict[str, Tensor]
    load: Tensor


@dataclass(frozen=True)
class Quality:
    """Of next-token predictions: `loss` in nats per token, `top1` the share whose likeliest token came.

    `bits_per_byte` counts the bytes of the learned text; special tokens have none and are left out of it.
    Calibration is described where it is computed, in training/calibration.py.
    """

    tokens: int
    loss: float
    perplexity: float
    bits_per_byte: float
    top1: float
    calibration_error: float
    brier: float


@dataclass(frozen=True)
class LayerLoad:
    """How the tokens of one layer spread over its experts: shares that sum to one, and figures on them."""

    shares: list[float]
    figures: LoadFigures


@dataclass(frozen=True)
class Doubt:
    """Rank correlation of an uncertainty with a token's loss, and with whether the likeliest was wrong."""

    with_loss: float | None
    with_error: float | None


@torch.inference_mode()
def predict(decoder: Decoder, batches: Sequence[Batch], advance: Callable[[], None]) -> Predictions:
    """Run `decoder` over `batches`, which must not be empty; `advance` is called after each."""
    parts = []
    for batch in batches:
        parts.append(_predict(decoder, batch))
        advance()
    weights = [batch.num_valid for batch in batches]
    load = sum(part.load * weight for part, weight in zip(parts, weights, strict=True)) / sum(weights)
    assert isinstance(load, Tensor)
    return Predictions(
        **{
            name: torch.cat([getattr(part, name) for part in parts])
            for name in ("targets", "nll", "confidence", "is_right", "brier")
        },
        extras={name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
        load=load,
    )


def _predict(decoder: Decoder, batch: Batch) -> Predictions:
    batch = batch.to(decoder.embedding.weight.device)
    learned = batch.targets != IGNORED
    targets = batch.targets[learned]
    routing, extras = list[Tensor](), dict[str, Tensor]()
    logits, _ = decoder(batch.input_ids, only=learned, routing=routing, extras=extras)  # (N, V)
    probabilities = logits.float().softmax(dim=-1)
    confidence, likeliest = probabilities.max(dim=-1)
    load = torch.zeros(0)
    if routing:
        load = summarize_routing(decoder.config, routing, batch.valid).load
    return Predictions(
        targets=targets.cpu(),
        nll=F.cross_entropy(logits.float(), targets, reduction="none").cpu(),
        confidence=confidence.cpu(),
        is_right=(likeliest == targets).cpu(),
        brier=brier_terms(probabilities, targets).cpu(),
        extras={name: figure.cpu() for name, figure in extras.items()},
        load=load.cpu(),
    )


def summarize(predictions: Predictions, tokenizer: Tokenizer) -> Quality:
    """The figures of `predictions`; `tokenizer` tells how many bytes a token stands for."""
    nll = predictions.nll.double()
    num_bytes = bytes_per_token(tokenizer)[predictions.targets]
    loss = nll.mean().item()
    return Quality(
        tokens=len(nll),
        loss=loss,
        perplexity=math.exp(loss),
        bits_per_byte=nll[num_bytes > 0].sum().item() / math.log(2) / int(num_bytes.sum()),
        top1=predictions.is_right.double().mean().item(),
        calibration_error=expected_calibration_error(predictions.confidence, predictions.is_right),
        brier=predictions.brier.double().mean().item(),
    )


def bytes_per_token(tokenizer: Tokenizer) -> Tensor:
    """The bytes that each token of a byte-level vocabulary stands for, (V,); 0 for special tokens."""
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    sizes = torch.zeros(tokenizer.get_vocab_size(), dtype=torch.int64)
    for token, number in tokenizer.get_vocab().items():
        sizes[number] = 0 if token in special else len(token)  # a byte is one character there
    return sizes


def describe_layers(load: Tensor) -> list[LayerLoad]:
    """Shares and figures of each expert layer of `load` (layers, E); none of a model without experts."""
    return [LayerLoad(layer.tolist(), describe_load(layer)) for layer in load]


def describe_doubt(predictions: Predictions) -> dict[str, Doubt]:
    """How each of the model's uncertainties goes with its errors; empty if it states none.

    `total` is epistemic plus aleatoric, `doubt` is 1 - confidence, the confidence the model's own.
    """
    return {
        name: Doubt(spearman(figure, predictions.nll), spearman(figure, ~predictions.is_right))
        for name, figure in _uncertainties(predictions.extras)
    }


def _uncertainties(extras: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    if "epistemic" in extras:
        yield "epistemic", extras["epistemic"]
        yield "aleatoric", extras["aleatoric"]
        yield "total", extras["epistemic"] + extras["aleatoric"]
        yield "doubt", 1 - extras["confidence"]

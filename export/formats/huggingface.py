"""Checkpoint directories of Hugging Face transformers: config.json, weights, tokenizer."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from export.errors import ExportError
from export.formats.architectures import ARCHITECTURES, Architecture
from export.formats.fields import Fields
from export.formats.hf_tokenizer import GENERATION_CONFIG, read_tokenizer
from export.formats.imported import Checkpoint
from export.formats.origins import sources_for
from export.formats.safetensors_files import SafetensorsFiles
from export.formats.tensors import TensorInfo, Tensors, decoder_from_sources, refuse_unknown
from export.formats.torch_files import TorchFiles
from export.formats.trident import HELD_OUT
from export.formats.weight_files import (
    CONFIG,
    SAFETENSORS,
    TORCH_SUFFIXES,
    find_weights,
    read_json,
    read_text,
)
from training.checkpoint import describe_errors
from training.config import ModelConfig
from training.decoder import Decoder

HEAD = "lm_head.weight"


def open_huggingface(directory: Path, weights: Path | None = None) -> Checkpoint:
    """The checkpoint in `directory`, its weights those in `weights` or in the files that it has.

    Raises ExportError in one sentence.
    """
    fields = Fields(read_json(directory / CONFIG), str(directory / CONFIG))
    config, architecture = config_from_fields(fields)
    tensors = open_weights([weights] if weights else find_weights(directory))
    tokenizer, special_tokens = read_tokenizer(directory, config.vocab_size)
    held_out = directory / HELD_OUT

    def load() -> Decoder:
        try:
            return _decoder(config, architecture, tensors)
        except ExportError as error:
            raise ExportError(f"{weights or directory}: {error}") from error

    return Checkpoint(
        architecture=fields.text("model_type"),
        config=config,
        infos=tensors.infos,
        tokenizer=tokenizer,
        special_tokens=special_tokens,
        load=load,
        held_out=read_text(held_out) if held_out.is_file() else None,
        oddities=tuple(_oddities(directory)),
    )


def config_from_fields(fields: Fields) -> tuple[ModelConfig, Architecture]:
    """What config.json describes; ExportError lists what there is for a `model_type` outside the table."""
    kind = fields.text("model_type")
    if kind not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        inside = ", ".join(f"{name} {value}" for name, value in _scalars(fields)) or "nothing that says more"
        raise ExportError(f"{fields.file}: model_type is {kind!r}; known are {known}. It says: {inside}")
    if "quantization_config" in fields:
        method = fields.section("quantization_config").text("quant_method", "an unnamed method")
        raise ExportError(f"{fields.file}: the weights are quantized by {method}; import the original")
    architecture = ARCHITECTURES[kind]
    try:
        return ModelConfig(**{"mixer": "attention", **architecture.settings(fields)}), architecture
    except ValidationError as error:
        raise ExportError(f"{fields.file}: {describe_errors(error)}") from error


def _scalars(fields: Fields) -> Iterator[tuple[str, object]]:
    """Names and sizes, for someone who wonders what the file is."""
    for name, value in list(fields.values.items())[:40]:
        if isinstance(value, int | str) and name != "model_type":
            yield name, str(value)[:60]
    yield from (("architectures", name) for name in fields.values.get("architectures") or ())


def open_weights(files: list[Path]) -> Tensors:
    """The tensors in files of one kind."""
    return SafetensorsFiles(files) if files[0].suffix == SAFETENSORS else TorchFiles(files)


def _oddities(directory: Path) -> Iterator[str]:
    if code := sorted(path.name for path in directory.glob("*.py")):
        yield f"it brings code ({', '.join(code)}), which is never run"
    if len(kinds := {path.suffix for path in directory.iterdir()} & {SAFETENSORS, *TORCH_SUFFIXES}) > 1:
        yield f"it holds weights as {' and '.join(sorted(kinds))}; safetensors are read"
    if not (directory / GENERATION_CONFIG).is_file():
        yield f"it has no {GENERATION_CONFIG}: only config.json and the tokenizer say what ends an answer"


class ShortNames:
    """Tensors under the names by which an architecture knows them; ExportError if two have the same."""

    def __init__(self, tensors: Tensors, architecture: Architecture) -> None:
        self._tensors = tensors
        self._full: dict[str, str] = {}
        for full in tensors.infos:
            other = self._full.setdefault(architecture.short(full), full)
            if other != full:
                raise ExportError(f"{other} and {full} are two names of one tensor")

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """See Tensors.infos."""
        return {short: self._tensors.infos[full] for short, full in self._full.items()}

    def read(self, name: str) -> Tensor:
        """See Tensors.read."""
        return self._tensors.read(self._full[name])


def _decoder(config: ModelConfig, architecture: Architecture, tensors: Tensors) -> Decoder:
    short = ShortNames(tensors, architecture)
    sources = sources_for(config, architecture.origins, architecture.layers)
    known = {name for source in sources.values() for name in source.names}
    found = {name for name in short.infos if not architecture.buffers.fullmatch(name)}
    refuse_unknown(known | ({HEAD} if config.tied_head else set()), found)
    architecture.check(config, short)
    decoder = decoder_from_sources(config, sources, short)
    if config.tied_head and HEAD in found and not torch.equal(short.read(HEAD), decoder.embedding.weight):
        raise ExportError(
            f"tie_word_embeddings is set, but {HEAD} differs from the embedding: which is meant?"
        )
    return decoder

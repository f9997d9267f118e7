"""Encoders of texts, such as sentence-transformers publish them: config.json, modules.json, safetensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.embedder_graph import Pooling
from export.errors import ExportError
from export.formats.weight_files import CONFIG, read_json, read_text

WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
MODULES, POOLING, LIMITS = "modules.json", "config.json", "sentence_bert_config.json"

# `model_type` → the classes of transformers, which hold no code of the checkpoint's.
ENCODERS = {
    "bert": ("BertConfig", "BertModel"),
    "distilbert": ("DistilBertConfig", "DistilBertModel"),
    "roberta": ("RobertaConfig", "RobertaModel"),
}
# RoBERTa counts positions from behind its padding token.
RESERVED_POSITIONS = {"roberta": 2}
POOLINGS: Mapping[str, Pooling] = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_lasttoken": "last",
}
KNOWN_MODULES = ("Transformer", "Pooling", "Normalize")


class EncoderBody(nn.Module):
    """A model of transformers up to its last hidden states."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, T, C)."""
        hidden: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return hidden


@dataclass(frozen=True)
class TextEncoderFiles:
    """An encoder with its weights, and what belongs to it."""

    body: EncoderBody
    pooling: Pooling
    max_length: int
    vocab_size: int
    pad: int
    tokenizer: str


def is_text_encoder(path: Path) -> bool:
    """Whether `path` is the directory of an encoder that is known here."""
    return (path / CONFIG).is_file() and read_json(path / CONFIG).get("model_type") in ENCODERS


def encoder_files(directory: Path) -> list[Path]:
    """All files that the vectors follow from."""
    names = [CONFIG, MODULES, LIMITS, TOKENIZER, WEIGHTS]
    pooling = sorted(directory.glob(f"*_Pooling/{POOLING}"))
    return [*(directory / name for name in names if (directory / name).is_file()), *pooling]


def read_text_encoder(directory: Path) -> TextEncoderFiles:
    """The encoder in `directory`; ExportError in one sentence."""
    values = read_json(directory / CONFIG)
    config, model = load_encoder(directory, values)
    reserved = RESERVED_POSITIONS.get(values["model_type"], 0)
    limits = directory / LIMITS
    longest = int(config.max_position_embeddings) - reserved
    said = read_json(limits).get("max_seq_length") if limits.is_file() else None
    if not (directory / TOKENIZER).is_file():
        raise ExportError(f"{directory} holds no {TOKENIZER}: a model is served with its tokenizer")
    return TextEncoderFiles(
        body=EncoderBody(model),
        pooling=read_pooling(directory),
        max_length=min(longest, said) if isinstance(said, int) and said > 0 else longest,
        vocab_size=int(config.vocab_size),
        pad=int(config.pad_token_id or 0),
        tokenizer=read_text(directory / TOKENIZER),
    )


def load_encoder(directory: Path, values: Mapping[str, Any]) -> tuple[Any, nn.Module]:
    """Configuration and model, all weights of which came from the file; ExportError otherwise."""
    # Here, because transformers takes seconds to load.
    import transformers

    weights = directory / WEIGHTS
    if not weights.is_file():
        raise ExportError(f"{directory} holds no {WEIGHTS}, which is what an encoder is read from")
    config_class, model_class = (getattr(transformers, name) for name in ENCODERS[values["model_type"]])
    try:
        config = config_class.from_dict(dict(values))
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in model_class(config).parameters())
        if size > weights.stat().st_size:
            raise ExportError(f"{directory / CONFIG} describes {size} weights; {WEIGHTS} can't hold as many")
        model, info = _from_pretrained(model_class, directory, config)
    except ExportError:
        raise
    except Exception as error:  # whatever transformers makes of a damaged checkpoint
        reason = " ".join(str(error).split())[:300]
        raise ExportError(f"{directory} can't be read as a {values['model_type']}: {reason}") from error
    missing = sorted(name for name in info["missing_keys"] if "pooler" not in name)
    if missing or info["mismatched_keys"]:
        raise ExportError(f"{weights} lacks {len(missing)} tensors of the model, first {missing[:1]}")
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise ExportError(f"{weights}: {name} holds values that are no finite numbers")
    return config, model.eval()


def _from_pretrained(model_class: Any, directory: Path, config: Any) -> tuple[nn.Module, dict[str, Any]]:
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        loaded: tuple[nn.Module, dict[str, Any]] = model_class.from_pretrained(
            directory,
            config=config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    finally:
        logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    return loaded


def read_pooling(directory: Path) -> Pooling:
    """How sentence-transformers would pool; the mean where it says nothing."""
    path = directory / MODULES
    if not path.is_file():
        return "mean"
    modules = read_modules(path)
    if unknown := [kind for kind, _ in modules if kind not in KNOWN_MODULES]:
        raise ExportError(f"{path} asks for {', '.join(unknown)}; known are {', '.join(KNOWN_MODULES)}")
    places = [place for kind, place in modules if kind == "Pooling"]
    if len(places) != 1 or Path(places[0]).name != places[0]:
        raise ExportError(f"{path} names {places} for pooling; one directory beside it is needed")
    flags = read_json(directory / places[0] / POOLING)
    chosen = [name for name, value in flags.items() if name.startswith("pooling_mode_") and value is True]
    if len(chosen) != 1 or chosen[0] not in POOLINGS:
        raise ExportError(f"{directory / places[0]} pools by {chosen}; known is one of {', '.join(POOLINGS)}")
    return POOLINGS[chosen[0]]


def read_modules(path: Path) -> list[tuple[str, str]]:
    """Class and directory of each module in `modules.json`, a list of objects."""
    try:
        return [
            (str(entry["type"]).rpartition(".")[2], str(entry["path"]))
            for entry in json.loads(path.read_bytes())
        ]
    except (ValueError, KeyError, TypeError) as error:
        raise ExportError(f"{path} is no list of modules: {error!r}") from error

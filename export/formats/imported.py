"""What every format reader gives: a decoder with its weights, and the tokenizer that belongs to it."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from export.errors import ExportError
from export.formats.chat_template import check_chat_template
from export.formats.tensors import TensorInfo
from export.formats.weight_files import read_text
from export.manifest import SpecialTokens
from training.config import ModelConfig
from training.decoder import Decoder

TOKENIZER = "tokenizer.json"
TOKENIZER_CONFIG = "tokenizer_config.json"
CHAT_TEMPLATE = "chat_template.jinja"


@dataclass(frozen=True)
class TokenizerFiles:
    """The three tokenizer files by content; a model without a chat template takes `text_input` only."""

    tokenizer: str
    config: Mapping[str, object]
    chat_template: str | None = None

    def write(self, directory: Path) -> None:
        """Write `tokenizer.json`, `tokenizer_config.json` and, if there is one, `chat_template.jinja`."""
        (directory / TOKENIZER).write_text(self.tokenizer, encoding="utf-8")
        config = json.dumps(dict(self.config), indent=2, ensure_ascii=False) + "\n"
        (directory / TOKENIZER_CONFIG).write_text(config, encoding="utf-8")
        if self.chat_template is not None:
            (directory / CHAT_TEMPLATE).write_text(self.chat_template, encoding="utf-8")


@dataclass(frozen=True)
class ImportedModel:
    """A model as export works on it; `held_out` is text it was not trained on, if the source brings any."""

    decoder: Decoder = field(repr=False)
    tokenizer: TokenizerFiles = field(repr=False)
    special_tokens: SpecialTokens
    held_out: str | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was recognised and understood, its weights not read yet.

    `architecture` is the name that the source has for it, `infos` what its files say of their tensors,
    `oddities` are sentences on what is unusual but no hindrance. `load` reads the weights.
    """

    architecture: str
    config: ModelConfig
    infos: Mapping[str, TensorInfo] = field(repr=False)
    tokenizer: TokenizerFiles = field(repr=False)
    special_tokens: SpecialTokens
    load: Callable[[], Decoder] = field(repr=False)
    held_out: str | None = field(default=None, repr=False)
    oddities: tuple[str, ...] = ()

    def read(self) -> ImportedModel:
        """The model with its weights in float32. Raises ExportError."""
        return ImportedModel(self.load(), self.tokenizer, self.special_tokens, self.held_out)


def with_template(files: TokenizerFiles, path: Path | None) -> TokenizerFiles:
    """The same files with the template in `path`, if one is given; ExportError if theirs does not render."""
    if path is not None:
        files = replace(files, chat_template=read_text(path))
    if files.chat_template is not None:
        check_chat_template(files.chat_template, files.config)
    return files


def with_chat_template(model: ImportedModel, path: Path | None) -> ImportedModel:
    """The same model with the template in `path`, if one is given; ExportError if it does not render."""
    return replace(model, tokenizer=with_template(model.tokenizer, path))


def with_max_length(model: ImportedModel, max_length: int | None) -> ImportedModel:
    """The same model with a shorter context; ExportError if it is beyond what the model knows."""
    config = model.decoder.config
    if max_length is None or max_length == config.max_length:
        return model
    if not 1 <= max_length <= config.max_length:
        raise ExportError(f"max length {max_length} was given; this model allows 1 to {config.max_length}")
    tensors = dict(model.decoder.state_dict())
    if "position.weight" in tensors:
        tensors["position.weight"] = tensors["position.weight"][:max_length].clone()
    decoder = Decoder.from_tensors(config.model_copy(update={"max_length": max_length}), tensors)
    return ImportedModel(decoder, model.tokenizer, model.special_tokens, model.held_out)

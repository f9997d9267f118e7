"""Trident's own checkpoint directories, as training writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.errors import ExportError
from export.formats.imported import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, Checkpoint, TokenizerFiles
from export.formats.safetensors_files import SafetensorsFiles
from export.manifest import SpecialTokens
from training.checkpoint import WEIGHTS, CheckpointError, load_config, load_model, whole_model
from training.decoder import Decoder

HELD_OUT = "held_out.txt"


def open_trident(directory: Path) -> Checkpoint:
    """The checkpoint in `directory`, with the held-out text that its quality is measured on if it has one.

    An adapter is read with its base and merged into it. Raises ExportError for a missing or damaged file,
    and for a vocabulary that does not fit the model.
    """
    try:
        config, weights = load_config(directory), whole_model(directory) / WEIGHTS
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    files = read_tokenizer_files(directory)
    vocabulary = Tokenizer.from_str(files.tokenizer).get_vocab_size()
    if vocabulary > config.vocab_size:
        raise ExportError(
            f"{directory / TOKENIZER} has {vocabulary} tokens, the model only {config.vocab_size}"
        )
    held_out = directory / HELD_OUT
    return Checkpoint(
        architecture=" and ".join(dict.fromkeys((*config.mixers, *config.ffns))),
        config=config,
        infos=SafetensorsFiles([weights]).infos if weights.is_file() else {},
        tokenizer=files,
        load=lambda: _load(directory),
        special_tokens=special_tokens(files),
        held_out=held_out.read_text("utf-8") if held_out.is_file() else None,
    )


def _load(directory: Path) -> Decoder:
    try:
        return load_model(directory)
    except CheckpointError as error:
        raise ExportError(str(error)) from error


def read_tokenizer_files(directory: Path) -> TokenizerFiles:
    """`tokenizer.json`, `tokenizer_config.json` and, if there is one, `chat_template.jinja`."""
    template = directory / CHAT_TEMPLATE
    try:
        files = TokenizerFiles(
            tokenizer=(directory / TOKENIZER).read_text("utf-8"),
            config=json.loads((directory / TOKENIZER_CONFIG).read_text("utf-8")),
            chat_template=template.read_text("utf-8") if template.is_file() else None,
        )
        Tokenizer.from_str(files.tokenizer)
    except FileNotFoundError as error:
        raise ExportError(f"{error.filename} is missing: a model is served with its tokenizer") from error
    except Exception as error:  # tokenizers raises nothing narrower
        raise ExportError(f"the tokenizer in {directory} is damaged: {error}") from error
    return files


def special_tokens(files: TokenizerFiles) -> SpecialTokens:
    """Ids of the tokens that `tokenizer_config.json` names; ExportError for one that is not there."""
    tokenizer = Tokenizer.from_str(files.tokenizer)
    bos, eos, pad = (token_id(tokenizer, files.config, f"{name}_token") for name in ("bos", "eos", "pad"))
    if eos is None:
        raise ExportError(f"{TOKENIZER_CONFIG} names no eos_token: without it no answer would end")
    return SpecialTokens(bos=bos, eos=(eos,), pad=pad)


def token_id(tokenizer: Tokenizer, config: Mapping[str, Any], name: str) -> int | None:
    """The id of the token that `tokenizer_config.json` calls `name`; None if it calls none so."""
    entry = config.get(name)
    token = entry["content"] if isinstance(entry, dict) else entry
    if token is None:
        return None
    index: int | None = tokenizer.token_to_id(token)
    if index is None:
        raise ExportError(f"{TOKENIZER_CONFIG} names {name} {token!r}, which is not in {TOKENIZER}")
    return index

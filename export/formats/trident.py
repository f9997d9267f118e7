"""Trident's own checkpoint directories, as training writes them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.errors import ExportError
from export.formats.imported import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, ImportedModel, TokenizerFiles
from export.manifest import SpecialTokens
from training.checkpoint import CheckpointError, load_model

HELD_OUT = "held_out.txt"


def read_trident(directory: Path) -> ImportedModel:
    """The model in `directory` and, if it carries one, the held-out text that its quality is measured on.

    Raises ExportError for a missing or damaged file, and for a vocabulary that does not fit the model.
    """
    try:
        decoder = load_model(directory)
    except CheckpointError as error:
        raise ExportError(str(error)) from error
    files = read_tokenizer_files(directory)
    vocabulary = Tokenizer.from_str(files.tokenizer).get_vocab_size()
    if vocabulary > decoder.config.vocab_size:
        raise ExportError(
            f"{directory / TOKENIZER} has {vocabulary} tokens, the model only {decoder.config.vocab_size}"
        )
    held_out = directory / HELD_OUT
    return ImportedModel(
        decoder=decoder,
        tokenizer=files,
        special_tokens=special_tokens(files),
        held_out=held_out.read_text("utf-8") if held_out.is_file() else None,
    )


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
    bos, eos, pad = (_token_id(tokenizer, files.config, f"{name}_token") for name in ("bos", "eos", "pad"))
    if eos is None:
        raise ExportError(f"{TOKENIZER_CONFIG} names no eos_token: without it no answer would end")
    return SpecialTokens(bos=bos, eos=(eos,), pad=pad)


def _token_id(tokenizer: Tokenizer, config: Mapping[str, Any], name: str) -> int | None:
    entry = config.get(name)
    token = entry["content"] if isinstance(entry, dict) else entry
    if token is None:
        return None
    index: int | None = tokenizer.token_to_id(token)
    if index is None:
        raise ExportError(f"{TOKENIZER_CONFIG} names {name} {token!r}, which is not in {TOKENIZER}")
    return index

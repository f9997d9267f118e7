"""Older forms of tokenizers as one of the `tokenizers` library, converted by transformers."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.errors import ExportError
from export.formats.weight_files import contents

FORMS = ("tokenizer.model", "vocab.json")


def convert_tokenizer(directory: Path) -> tuple[Tokenizer, dict[str, Any]]:
    """The tokenizer and the configuration that its class implies, from files that older checkpoints have.

    These are `tokenizer.model` (SentencePiece) and `vocab.json` with `merges.txt` (byte-level BPE).
    How text is cut before merging is not in these files; it follows from `tokenizer_class` or `model_type`.
    Raises ExportError if there is none of them, or if transformers cannot make one of them.
    """
    if not any((directory / name).is_file() for name in FORMS):
        raise ExportError(
            f"{directory} holds no tokenizer.json, tokenizer.model or vocab.json with merges.txt; there are "
            f"{', '.join(contents(directory))}. A model is served with its tokenizer"
        )
    # Here, because transformers takes seconds to load and most checkpoints do not need it.
    from transformers import AutoTokenizer

    with _quiet():
        try:
            loaded = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever the class of tokenizer in question may raise
            reason = str(error).partition("\n")[0]
            raise ExportError(f"the tokenizer in {directory} cannot be converted: {reason}") from error
    names = {key: str(token) for key, token in loaded.special_tokens_map.items() if isinstance(token, str)}
    implied = names | {"add_bos_token": bool(getattr(loaded, "add_bos_token", False))}
    return Tokenizer.from_str(loaded.backend_tokenizer.to_str()), implied


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence advice that is meant for users of transformers."""
    log = logging.getLogger("transformers")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)

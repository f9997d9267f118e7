"""The tokenizer of a Hugging Face directory, in whichever of its forms, and the chat template with it."""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from export.errors import ExportError
from export.formats.imported import CHAT_TEMPLATE, TOKENIZER, TOKENIZER_CONFIG, TokenizerFiles
from export.formats.tokenizer_conversion import convert_tokenizer
from export.formats.trident import token_id
from export.formats.weight_files import CONFIG, read_json, read_text
from export.manifest import SpecialTokens

GENERATION_CONFIG = "generation_config.json"
SPECIAL_TOKENS_MAP = "special_tokens_map.json"


def read_tokenizer(
    directory: Path, vocab_size: int, ends: Collection[int] = ()
) -> tuple[TokenizerFiles, SpecialTokens]:
    """The tokenizer's files and the tokens with a meaning, `ends` among those that end a text.

    Raises ExportError in one sentence.
    """
    config = _read_if_there(directory / SPECIAL_TOKENS_MAP) | _read_if_there(directory / TOKENIZER_CONFIG)
    _require_names(config, directory)
    tokenizer = _read_tokenizer_json(directory)
    if tokenizer is None:
        tokenizer, implied = convert_tokenizer(directory)
        config = implied | config
    highest = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= vocab_size:
        raise ExportError(f"the tokenizer in {directory} goes up to {highest}, the model to {vocab_size - 1}")
    special_tokens = _special_tokens(directory, tokenizer, config, vocab_size, ends)
    template = _chat_template(directory, config)
    kept = {key: value for key, value in config.items() if key != "chat_template"}
    adds_bos = config.get("add_bos_token", _adds(tokenizer, special_tokens.bos))
    files = TokenizerFiles(tokenizer.to_str(), kept | {"add_bos_token": bool(adds_bos)}, template)
    return files, special_tokens


def _require_names(config: Mapping[str, Any], directory: Path) -> None:
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        text = token.get("content") if isinstance(token, dict) else token
        if token is not None and not isinstance(text, str):
            raise ExportError(
                f"{directory / TOKENIZER_CONFIG}: {name} is {str(token)[:80]}; a text is needed"
            )


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _read_tokenizer_json(directory: Path) -> Tokenizer | None:
    path = directory / TOKENIZER
    if not path.is_file():
        return None
    try:
        return Tokenizer.from_str(read_text(path))
    except Exception as error:  # tokenizers raises nothing narrower
        raise ExportError(f"{path} is damaged: {error}") from error


def _special_tokens(
    directory: Path,
    tokenizer: Tokenizer,
    config: Mapping[str, Any],
    vocab_size: int,
    more_ends: Collection[int],
) -> SpecialTokens:
    """Begin and padding by the tokenizer's configuration; any token that is an end anywhere is an end."""
    bos, eos, pad = (token_id(tokenizer, config, f"{name}_token") for name in ("bos", "eos", "pad"))
    ends = [eos, *_ends(directory / GENERATION_CONFIG, vocab_size), *_ends(directory / CONFIG, vocab_size)]
    known = tuple(dict.fromkeys(end for end in (*ends, *more_ends) if end is not None))
    if not known:
        raise ExportError(f"{directory} names no eos_token: without it no answer would end")
    return SpecialTokens(bos=bos, eos=known, pad=pad)


def _ends(path: Path, vocab_size: int) -> list[int]:
    given = _read_if_there(path).get("eos_token_id")
    ends = given if isinstance(given, list) else [] if given is None else [given]
    for end in ends:
        if type(end) is not int or not 0 <= end < vocab_size:
            raise ExportError(f"{path}: eos_token_id {end!r} is no token; they go from 0 to {vocab_size - 1}")
    return ends


def _chat_template(directory: Path, config: Mapping[str, Any]) -> str | None:
    """The file's, or else the configuration's own or the one it calls `default`."""
    path = directory / CHAT_TEMPLATE
    if path.is_file():
        return read_text(path)
    given = config.get("chat_template")
    if isinstance(given, list):
        named = {str(entry.get("name")): entry.get("template") for entry in given if isinstance(entry, dict)}
        given = named.get("default")
    if given is not None and not isinstance(given, str):
        raise ExportError(f"{directory / TOKENIZER_CONFIG}: chat_template is a {type(given).__name__}")
    return given


def _adds(tokenizer: Tokenizer, bos: int | None) -> bool:
    """Whether the tokenizer itself puts `bos` before a text."""
    with_special, without = (
        tokenizer.encode("a", add_special_tokens=special).ids for special in (True, False)
    )
    return bool(bos is not None and with_special[:1] == [bos] and without[:1] != [bos])

"""Byte-level BPE: trained here, kept in the three files that Hugging Face tools and the server read."""

import json
from collections.abc import Iterable
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from training.chat import CHAT_FORMATS, ROLES, ChatFormat
from training.checkpoint import TOKENIZER_FILES, CheckpointError

NUM_BYTES = 256


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, chat: ChatFormat = ROLES) -> Tokenizer:
    """A byte-level BPE learned from `texts`; any Unicode text comes back unchanged from its ids.

    The special tokens have the first ids. The vocabulary is smaller than `vocab_size` if `texts` hold too few
    pairs to merge. Raises ValueError if `vocab_size` has no room for the bytes and the special tokens.
    """
    least = NUM_BYTES + len(chat.special_tokens)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}, but bytes and special tokens take {least}: give at least that"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in chat.special_tokens],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, str]:
    """The files that make a model directory whole, name -> text: BPE, special tokens, chat template."""
    chat = chat_format(tokenizer)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": chat.begin,
        "eos_token": chat.end,
        "pad_token": chat.pad,
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
        "chat_template": chat.template,
    }
    texts = (tokenizer.to_str(pretty=True), json.dumps(config, indent=2) + "\n", chat.template)
    return dict(zip(TOKENIZER_FILES, texts, strict=True))


def chat_format(tokenizer: Tokenizer) -> ChatFormat:
    """The format that `tokenizer` was trained for, told by its special tokens; KeyError if it has none's."""
    formats = sorted(CHAT_FORMATS.values(), key=lambda chat: -len(chat.special_tokens))
    for chat in formats:
        if all(tokenizer.token_to_id(token) is not None for token in chat.special_tokens):
            return chat
    raise KeyError(
        f"the tokenizer lacks the special tokens of every chat format: {', '.join(CHAT_FORMATS)}; "
        "it was trained elsewhere"
    )


def token_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of one token of the vocabulary; KeyError if it has none."""
    number: int | None = tokenizer.token_to_id(token)
    if number is None:
        raise KeyError(f"{token!r} is no token of this tokenizer: it was trained elsewhere")
    return number


def load_tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer in a model directory. Raises CheckpointError if it is missing or broken."""
    path = directory / TOKENIZER_FILES[0]
    if not path.is_file():
        raise CheckpointError(
            f"{path} is missing: training writes it beside the model; give a model directory"
        )
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises nothing narrower
        raise CheckpointError(f"{path} is no tokenizer: {error}") from error

"""A corpus of every choice of data."""

from collections.abc import Callable
from typing import TypeVar

from training.chat import Conversation
from training.data.atlas import Atlas
from training.data.atlas_corpus import AtlasCorpus
from training.data.chat_corpus import ChatCorpus
from training.data.chat_lines import read_chats
from training.data.chitchat import read_chitchat
from training.data.choice import AtlasData, ChitchatData, DataChoice, DataError, FileData, hash_content
from training.data.corpus import Corpus
from training.data.saved_datasets import open_saved
from training.data.split import split
from training.data.text import read_documents
from training.data.text_corpus import TextCorpus

T = TypeVar("T")


def load_corpus(choice: DataChoice, *, seed: int) -> Corpus:
    """The corpus of `choice`; only atlas's depends on `seed`. Raises DataError."""
    match choice:
        case AtlasData():
            return AtlasCorpus(Atlas(seed=seed, num_countries=choice.num_countries))
        case ChitchatData():
            return ChatCorpus(*split(read_chitchat(), _words, name="conversations of chitchat-dataset"))
        case FileData():
            return _corpus_of_files(choice)


def _corpus_of_files(choice: FileData) -> Corpus:
    name = ", ".join(map(str, choice.paths))
    for path in choice.paths:
        if not path.exists():
            raise DataError(f"{path} is missing: put the data back, or start another run")
    if choice.sha256 is not None and hash_content(choice.paths) != choice.sha256:
        raise DataError(
            f"{name} has changed since the run was started, so what was held out may differ: put the old "
            "content back, or start another run"
        )
    match choice.kind:
        case "text":
            return TextCorpus(*split(read_documents(choice.paths), str, name=f"{name}: documents"))
        case "chat":
            return ChatCorpus(*split(read_chats(choice.paths), _words, name=f"{name}: conversations"))
        case "dataset":
            return _saved_corpus(choice, name)


def _saved_corpus(choice: FileData, name: str) -> Corpus:
    if len(choice.paths) > 1:
        raise DataError(f"{name}: one directory that `datasets` saved is expected, {len(choice.paths)} given")
    saved = open_saved(choice.paths[0])
    match saved.column:
        case "text":
            return TextCorpus(*_divide(*saved.texts(), str, name=name))
        case "messages":
            return ChatCorpus(*_divide(*saved.conversations(), _words, name=name))


def _divide(
    kept: list[T], held_out: list[T], text_of: Callable[[T], str], *, name: str
) -> tuple[list[T], list[T]]:
    """The split that the data bring, or else ours."""
    return (kept, held_out) if held_out else split(kept, text_of, name=f"{name}: rows")


def _words(conversation: Conversation) -> str:
    return "\n".join(message.content for message in conversation.messages)

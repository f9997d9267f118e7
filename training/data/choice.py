"""What a recipe can train on, and how the data of one's own is recognised."""

import hashlib
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Format = Literal["text", "chat", "dataset"]

CHAT_SUFFIXES = (".jsonl", ".ndjson")
DATASET_FILES = ("dataset_info.json", "dataset_dict.json")  # what `datasets` puts into a directory it saves
CHUNK_BYTES = 1 << 20


class DataError(ValueError):
    """Data that cannot be trained on; the message names the file, the place and what is wrong there."""


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AtlasData(_Choice):
    """Geography, small talk and refusals; `num_countries` cuts it, None leaves it whole."""

    kind: Literal["atlas"] = "atlas"
    num_countries: PositiveInt | None = None


class ChitchatData(_Choice):
    """Real dialogues between two people, from the package chitchat-dataset."""

    kind: Literal["chitchat"] = "chitchat"


class FileData(_Choice):
    """Files of one's own; `sha256` is that of their content when a run was started with them."""

    kind: Format
    paths: tuple[Path, ...] = Field(min_length=1)
    sha256: str | None = None

    def stamped(self) -> Self:
        """The same choice with absolute paths and the content's hash, so that a change is noticed."""
        paths = tuple(path.resolve() for path in self.paths)
        return self.model_copy(update={"paths": paths, "sha256": hash_content(paths)})


DataChoice = Annotated[AtlasData | ChitchatData | FileData, Field(discriminator="kind")]


def choose_data(paths: list[Path], kind: Format | None) -> FileData:
    """The choice of `paths`, which are of one format; it is detected if `kind` is None. Raises DataError."""
    for path in paths:
        if not path.exists():
            raise DataError(f"{path} does not exist")
    kinds = {kind or detect(path) for path in paths}
    if len(kinds) > 1:
        raise DataError(
            f"the data are of several formats, {' and '.join(sorted(kinds))}: give those of one, or --format"
        )
    return FileData(kind=kinds.pop(), paths=tuple(paths))


def detect(path: Path) -> Format:
    """`.jsonl` is a chat, a directory that `datasets` saved a data set, any other file text."""
    if path.is_dir():
        if not any((path / name).is_file() for name in DATASET_FILES):
            raise DataError(
                f"{path} is a directory, but not one that `datasets` saved: {' or '.join(DATASET_FILES)} is "
                "missing; give such a directory, or files"
            )
        return "dataset"
    return "chat" if path.suffix.lower() in CHAT_SUFFIXES else "text"


def hash_content(paths: tuple[Path, ...]) -> str:
    """SHA-256 over names, sizes and bytes of files, and of all files within directories. Raises DataError."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    digest = hashlib.sha256()
    for file in files:
        if file.is_file():
            digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
            _add_bytes(digest, file)
    return digest.hexdigest()


def _add_bytes(digest: "hashlib._Hash", path: Path) -> None:
    try:
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error

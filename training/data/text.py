"""Plain text files, read as UTF-8 and cut into documents."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from training.chat import ALL_MARKS, END
from training.data.choice import DataError

SHORTEST, LONGEST = 2_000, 20_000  # characters of a passage, where a file does not say what its documents are
CUTS = ("\n\n", "\n", " ")


def read_documents(paths: Sequence[Path]) -> list[str]:
    """The documents of all files, none empty. Raises DataError.

    A line `<|endoftext|>` ends a document. A file without one is cut into passages: at the first blank line
    after SHORTEST characters, if there is none before LONGEST at a line's end, else at a space.
    """
    documents = [document for path in paths for document in _documents_of(path)]
    if not documents:
        raise DataError(f"{_names(paths)}: there is no text in it")
    return documents


def _documents_of(path: Path) -> list[str]:
    text = read_utf8(path)
    pieces = f"\n{text}\n".split(f"\n{END}\n")
    documents = pieces if len(pieces) > 1 else passages(text)
    whole = [stripped for document in documents if (stripped := document.strip())]
    for document in whole:
        check_plain(document, where=str(path))
    return whole


def passages(text: str) -> Iterator[str]:
    """`text` in pieces that joined are the same again."""
    start = 0
    while start < len(text):
        end = _end_of_passage(text, start)
        yield text[start:end]
        start = end


def _end_of_passage(text: str, start: int) -> int:
    for mark in CUTS:
        place = text.find(mark, start + SHORTEST, start + LONGEST)
        if place >= 0:
            return place + len(mark)
    return min(start + LONGEST, len(text))


def read_utf8(path: Path) -> str:
    """The text of a file with its line ends as "\\n", a byte order mark left out.

    Raises DataError naming file, line and byte that are not UTF-8.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}, line {line}: byte 0x{content[error.start]:02x} is not UTF-8; convert the file first"
        ) from error


def check_plain(text: str, *, where: str) -> None:
    """Raises DataError if `text` holds a mark that only the template may set."""
    for token in ALL_MARKS:
        if token in text:
            raise DataError(f"{where} holds {token!r}, which is a special token and no text: take it out")


def _names(paths: Sequence[Path]) -> str:
    return ", ".join(map(str, paths))

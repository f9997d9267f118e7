"""Directories that Hugging Face `datasets` saved (`save_to_disk`), with a `text` or a `messages` column."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.chat import Conversation
from training.data.chat_lines import parse_all
from training.data.choice import DataError
from training.data.text import check_plain

COLUMNS = ("text", "messages")
TRAINING, HELD_OUT = "train", ("validation", "test")  # names of splits, as published data sets have them


@dataclass(frozen=True)
class Saved:
    """What a directory holds, all of it; `held_out` is empty unless the directory names such a split."""

    items: list[str] | list[Conversation]
    held_out: list[str] | list[Conversation]


def read_saved(path: Path) -> Saved:
    """The rows of a saved data set. Raises DataError.

    Of several splits `train` is trained on, `validation`, or else `test`, is held out.
    """
    import datasets  # two seconds, which no other data needs

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # the library passes on what Arrow, JSON and the disk raise
        raise DataError(f"{path} is no data set that `datasets` can read: {error}") from error
    if not isinstance(loaded, datasets.DatasetDict):
        return Saved(_items(loaded, str(path)), [])
    if TRAINING not in loaded:
        raise DataError(f"{path} has the splits {', '.join(loaded)}, but none is called {TRAINING!r}")
    held_out = next((name for name in HELD_OUT if name in loaded), None)
    return Saved(
        _items(loaded[TRAINING], f"{path}, {TRAINING}"),
        _items(loaded[held_out], f"{path}, {held_out}") if held_out else [],
    )


def _items(rows: Any, name: str) -> list[str] | list[Conversation]:
    found = [column for column in COLUMNS if column in rows.column_names]
    if len(found) != 1:
        raise DataError(
            f"{name} has the columns {', '.join(rows.column_names) or 'none'}: exactly one of "
            f"{' and '.join(COLUMNS)} must be there"
        )
    if found == ["messages"]:
        return parse_all(({"messages": turns} for turns in rows["messages"]), name=name, unit="row")
    return [_document(text, f"{name}, row {number}") for number, text in enumerate(rows["text"], start=1)]


def _document(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: text is {text!r}, a text that is not empty is expected")
    check_plain(text, where=where)
    return text.strip()

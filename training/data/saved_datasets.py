"""Directories that Hugging Face `datasets` saved (`save_to_disk`), with a `text` or a `messages` column."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from training.chat import Conversation
from training.data.chat_lines import parse_all
from training.data.choice import DataError
from training.data.text import check_plain

TRAINING, HELD_OUT = "train", ("validation", "test")  # names of splits, as published data sets have them


Column = Literal["text", "messages"]


@dataclass(frozen=True)
class Saved:
    """The rows of a directory's splits; `held_out` is None unless the directory names such a split.

    Both have the one `column`, and rows. Reading them raises DataError for a row that is wrong.
    """

    name: str
    column: Column
    kept: Any
    held_out: Any | None

    def texts(self) -> tuple[list[str], list[str]]:
        """The documents to train on and those held out, which may be none."""
        return _texts(self.kept, self.name), _texts(self.held_out or [], f"{self.name}, held out")

    def conversations(self) -> tuple[list[Conversation], list[Conversation]]:
        """The conversations to train on and those held out, which may be none."""
        return _chats(self.kept, self.name), _chats(self.held_out or [], f"{self.name}, held out")


def open_saved(path: Path) -> Saved:
    """A saved data set. Raises DataError.

    Of several splits `train` is trained on, `validation`, or else `test`, is held out.
    """
    loaded = _load(path)
    splits = dict(loaded) if isinstance(loaded, dict) else {TRAINING: loaded}
    if TRAINING not in splits:
        raise DataError(f"{path} has the splits {', '.join(splits)}, but none is called {TRAINING!r}")
    held_out = next((name for name in HELD_OUT if name in splits), None)
    used = {name: splits[name] for name in (TRAINING, held_out) if name is not None}
    columns = [_column(rows, f"{path}, {name}") for name, rows in used.items()]
    if len(set(columns)) > 1:
        raise DataError(f"{path} has {columns[0]} in {TRAINING!r}, but {columns[1]} in {held_out!r}")
    return Saved(str(path), columns[0], used[TRAINING], used[held_out] if held_out else None)


def _load(path: Path) -> Any:
    import datasets  # two seconds, which no other data needs

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # the library passes on what Arrow, JSON and the disk raise
        raise DataError(
            f"{path} is no data set that `datasets` can read, and it reads none without rows: {error}"
        ) from error


def _column(rows: Any, name: str) -> Column:
    found = [column for column in get_args(Column) if column in rows.column_names]
    if len(found) != 1:
        raise DataError(
            f"{name} has the columns {', '.join(rows.column_names)}: exactly one of "
            f"{' and '.join(get_args(Column))} must be there"
        )
    column: Column = found[0]
    return column


def _texts(rows: Any, name: str) -> list[str]:
    return [_document(row["text"], f"{name}, row {number}") for number, row in enumerate(rows, start=1)]


def _chats(rows: Any, name: str) -> list[Conversation]:
    return parse_all(({"messages": row["messages"]} for row in rows), name=name, unit="row")


def _document(text: Any, where: str) -> str:
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: text is {text!r}, a text that is not empty is expected")
    check_plain(text, where=where)
    return text.strip()

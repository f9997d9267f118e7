"""What happens in a run, as JSON lines: only ever appended, so that they can be followed while it goes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol


class Mirror(Protocol):
    """Something that shows events elsewhere."""

    def write(self, event: dict[str, Any]) -> None:
        """Take one event as it stands in the log."""
        ...


class EventLog:
    """Appends events to one file. A line that a killed process left half-written is cut off first.

    With `is_silent` nothing is touched: of many ranks one tells what happens.
    """

    def __init__(self, path: Path, *, is_silent: bool = False) -> None:
        self._path = path
        self._is_silent = is_silent
        self._mirrors: list[Mirror] = []
        if not is_silent:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
            _cut_half_line(path)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; a whole line reaches the file at once. `fields` must be plain JSON values."""
        if self._is_silent:
            return
        entry = {"event": event, **fields}
        line = json.dumps(entry, allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)
        for mirror in self._mirrors:
            mirror.write(entry)

    def mirror(self, mirror: Mirror) -> None:
        """Show `mirror` every event so far, and from now on each new one."""
        for entry in read_events(self._path):
            mirror.write(entry)
        self._mirrors.append(mirror)


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """The events so far, oldest first; a last line still being written is left out."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            if line.endswith("\n"):
                yield json.loads(line)


def _cut_half_line(path: Path) -> None:
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)

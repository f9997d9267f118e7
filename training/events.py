"""What happens in a run, as JSON lines: only ever appended, so that they can be followed while it goes."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EventLog:
    """Appends events to one file. A line that a killed process left half-written is cut off first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        _cut_half_line(path)

    def write(self, event: str, **fields: Any) -> None:
        """Append one event; a whole line reaches the file at once. `fields` must be plain JSON values."""
        line = json.dumps({"event": event, **fields}, allow_nan=False) + "\n"
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line)


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

"""A JSON object read field by field, each with the type it must have."""

import math
from collections.abc import Mapping
from typing import Any, TypeVar

from export.errors import ExportError

T = TypeVar("T", int, float, bool, str)


class Fields:
    """`values` as `file` holds them; a field that is null counts as absent."""

    def __init__(self, values: Mapping[str, Any], file: str) -> None:
        self.values, self.file = values, file

    def __contains__(self, name: str) -> bool:
        return self.values.get(name) is not None

    def integer(self, name: str, default: int | None = None) -> int:
        """A whole number of 64 bits; ExportError if it is another thing, or absent without default."""
        value = self._typed(name, default, int, "a whole number")
        if abs(value) >= 1 << 63:
            raise self._wrong(name, "a whole number of 64 bits")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        """A finite number."""
        value = self.values.get(name)
        if type(value) is int and abs(value) < 1 << 53:
            return float(value)
        value = self._typed(name, default, float, "a number")
        if not math.isfinite(value):
            raise self._wrong(name, "a finite number")
        return value

    def flag(self, name: str, default: bool) -> bool:
        """True or false."""
        return self._typed(name, default, bool, "true or false")

    def text(self, name: str, default: str | None = None) -> str:
        """A string."""
        return self._typed(name, default, str, "a string")

    def section(self, name: str) -> "Fields":
        """An object inside this one; an empty one if it is absent."""
        value = self.values.get(name) or {}
        if not isinstance(value, dict):
            raise self._wrong(name, "an object")
        return Fields(value, f"{self.file}: {name}")

    def require(self, name: str, given: object, served: object) -> None:
        """ExportError unless what is `given` by the field, or by its absence, is what is served."""
        if given != served:
            raise ExportError(f"{self.file}: {name} is {given!r}; supported is {served!r}")

    def _typed(self, name: str, default: T | None, kind: type[T], what: str) -> T:
        value = self.values.get(name)
        if value is None and default is not None:
            return default
        if value is None:
            raise ExportError(f"{self.file} has no {name}")
        if type(value) is not kind:
            raise self._wrong(name, what)
        return value

    def _wrong(self, name: str, what: str) -> ExportError:
        return ExportError(f"{self.file}: {name} is {str(self.values[name])[:80]!r}; {what} is needed")

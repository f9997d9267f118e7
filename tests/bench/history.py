"""A run beside an earlier one: ratios that moved by more than both runs' spreads."""

import json
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.bench.measure import Row


def read_rows(path: Path) -> list[Row]:
    """The rows of a result file; SystemExit says what is wrong with it."""
    try:
        return [Row(**row) for row in json.loads(path.read_text())["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path} is no result of `make bench` ({error!r})") from None


def print_changes(before: Sequence[Row], rows: Sequence[Row]) -> None:
    """Ratios then and now, of the rows that both runs have."""
    then = {(row.name, row.peer_name): row for row in before}
    pairs = [(then[key], row) for row in rows if (key := (row.name, row.peer_name)) in then]
    if not pairs:
        return
    table = Table("what", "peer", "then", "now", "", title="Beside the earlier run")
    for old, new in pairs:
        table.add_row(new.name, new.peer_name, f"{old.ratio:.2f}", f"{new.ratio:.2f}", verdict(old, new))
    Console(width=120).print(table)


def verdict(old: Row, new: Row) -> str:
    """`better` or `worse` where the two spreads don't overlap."""
    (old_low, old_high), (low, high) = _spread(old), _spread(new)
    if low > old_high:
        return "better"
    return "worse" if high < old_low else ""


def _spread(row: Row) -> tuple[float, float]:
    low, high = row.spread.split("-")
    return float(low), float(high)

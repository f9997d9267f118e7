"""What holds for all tests."""

import gc
import signal
from collections import Counter

import pytest


def pytest_configure() -> None:
    """Heed Ctrl-C, which a shell makes the suite, and all that it starts, ignore in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Slow files first: at the end, one process would wait for the other's."""
    num_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -num_slow[item.path])


@pytest.fixture(scope="module", autouse=True)
def _look_no_more_at_what_stays() -> None:
    """Libraries are half a million objects, and each export looks through all of them for garbage, twice."""
    gc.collect()
    gc.freeze()

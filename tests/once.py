"""What is costly to make is made once for all the processes that a session's tests run in."""

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest


def shared_directory(factory: pytest.TempPathFactory) -> Path:
    """The session's temporary directory, of which each of several processes has a part of its own."""
    base = factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def once(directory: Path, make: Callable[[Path], object]) -> Path:
    """`directory` as `make` left it; whoever asks meanwhile waits. It exists only when it is whole."""
    with directory.with_name(f"{directory.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            fresh = directory.with_name(f"{directory.name}.fresh")
            fresh.mkdir()
            make(fresh)
            fresh.rename(directory)
    return directory

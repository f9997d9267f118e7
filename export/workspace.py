"""A place to work in that leaves nothing behind, on the disk where the result will lie."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from export.errors import ExportError

GIGABYTE = 1e9


@contextmanager
def workspace(target: Path, model: str) -> Iterator[Path]:
    """An empty directory for one export of `model`, gone when the block ends, however it ends.

    It lies beside `target`, since Triton loads every directory inside a repository, even a hidden one; and on
    the same filesystem, so that installing is a rename. What a killed export left is removed first.
    Raises ExportError while another export of `model` runs, and where the two filesystems differ.
    """
    target = target.resolve()
    directory = target.parent / f".{target.name}.incoming-{model}"
    directory.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        _lock(descriptor, directory, model)
        _require_same_filesystem(target, directory)
        _empty(directory)
        try:
            yield directory
        finally:
            shutil.rmtree(directory)
    finally:
        os.close(descriptor)


def _lock(descriptor: int, directory: Path, model: str) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ExportError(
            f"another export of {model} is running (it holds {directory}); wait until it has ended"
        ) from None


def _require_same_filesystem(target: Path, directory: Path) -> None:
    if target.exists() and target.stat().st_dev != directory.stat().st_dev:
        raise ExportError(
            f"{target} is a mount point, so nothing can be prepared beside it: give a directory below it"
        )


def _empty(directory: Path) -> None:
    for path in directory.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def require_disk(directory: Path, needed: int) -> None:
    """ExportError unless `needed` bytes are free where `directory` is."""
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise ExportError(
            f"the disk of {directory} has {free / GIGABYTE:.1f} GB free, this export needs "
            f"{needed / GIGABYTE:.1f} GB: free some space or give another --repository"
        )

"""Assembled backend directories: taken by servers, and removed when none holds them any more."""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from backends.assemble import assemble
from backends.environment import ServerEnvironment

PRUNED = ".pruned-"


class Lease:
    """A lock on a directory that processes share; the kernel gives it back for one that dies."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._descriptor: int | None = os.open(directory, os.O_RDONLY)
        fcntl.flock(self._descriptor, fcntl.LOCK_SH)

    def release(self) -> None:
        """Let the directory go; twice is harmless."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def take(environment: ServerEnvironment, root: Path) -> Lease:
    """The assembled directory of this environment and these sources, held; what nobody holds is removed."""
    with one_at_a_time(root):
        lease = Lease(assemble(environment, root))
        prune(root)
    return lease


@contextmanager
def one_at_a_time(root: Path) -> Iterator[None]:
    """Nobody assembles, takes or prunes in `root` meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def prune(root: Path) -> None:
    """Remove the directories that nobody holds, and what killed processes left of theirs."""
    # What was left comes first in this order, so that its name is free.
    for directory in sorted(path for path in root.iterdir() if path.is_dir()):
        if is_held(directory):
            continue
        # Renamed first: whoever is killed in the middle leaves no half directory under a digest's name.
        doomed = directory.with_name(PRUNED + directory.name.removeprefix(PRUNED))
        directory.rename(doomed)
        shutil.rmtree(doomed)


def is_held(directory: Path) -> bool:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

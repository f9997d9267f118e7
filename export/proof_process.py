"""A proof in a process of its own, under limits of time and memory: a stranger's graph may take it down."""

import resource
import subprocess
import sys
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from export.errors import ExportError

ROOM = 6 << 30  # bytes for what a graph computes, beside its weights
COPIES = 4  # of the weights: the file, two sessions, and what a session prepacks
HELD = {resource.RLIMIT_AS: 0, resource.RLIMIT_DATA: 5}  # the field of /proc/self/statm, in pages

Proof = TypeVar("Proof", bound=BaseModel)


def prove_apart(
    module: str, *arguments: str, request: str = "", seconds: int, proof: type[Proof], file: str, trouble: str
) -> Proof:
    """The `proof` that `python -m module` prints when it reads `request`; `file` is what it is about.

    Raises ExportError after so many `seconds`; where there is none, with `trouble` and stderr's last line.
    """
    command = [sys.executable, "-m", module, *arguments]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        raise ExportError(
            f"{file} takes more than {seconds} seconds to prove: import it on a faster machine"
        ) from None
    try:
        return proof.model_validate_json(done.stdout)
    except ValidationError:
        reason = done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
        raise ExportError(f"{trouble}: {reason}") from None


def limit_memory(kind: int, size: int) -> None:
    """Let this process take, of a `kind` (a key of HELD), what a graph of `size` bytes needs and no more."""
    held = int(Path("/proc/self/statm").read_text().split()[HELD[kind]]) * resource.getpagesize()
    limit = held + ROOM + COPIES * size
    resource.setrlimit(kind, (limit, limit))

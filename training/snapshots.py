"""Training checkpoints: directories that appear whole, the last three of them, each with its checksum."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from training.checkpoint import CheckpointError, atomic_directory

KEPT = 3
STATE, TENSORS = "state.json", "training.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """A moment of a run: after `step` steps, with the best validation loss until then (None if not yet)."""

    step: int
    best_validation: float | None
    tensors: dict[str, Tensor]


def save_snapshot(directory: Path, snapshot: Snapshot) -> Path:
    """Write `directory`/step-NNNNNN and forget all but the newest KEPT."""
    path = directory / f"step-{snapshot.step:06d}"
    with atomic_directory(path, replace=True) as fresh:
        save_file({name: tensor.contiguous() for name, tensor in snapshot.tensors.items()}, fresh / TENSORS)
        state = {
            "step": snapshot.step,
            "best_validation": snapshot.best_validation,
            "sha256": _checksum(fresh / TENSORS),
        }
        (fresh / STATE).write_text(json.dumps(state, indent=2) + "\n", encoding="utf-8")
    for old in snapshot_paths(directory)[:-KEPT]:
        shutil.rmtree(old)
    return path


def snapshot_paths(directory: Path) -> list[Path]:
    """The snapshots in `directory`, oldest first."""
    return sorted(directory.glob("step-*"))


def load_snapshot(path: Path) -> Snapshot:
    """Read one snapshot back. Raises CheckpointError naming the file that is missing, changed or short."""
    try:
        state = json.loads((path / STATE).read_bytes())
        step, best, expected = state["step"], state["best_validation"], state["sha256"]
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path / STATE} is missing or corrupt: {error!r}") from error
    tensors = path / TENSORS
    if not tensors.is_file():
        raise CheckpointError(f"{tensors} is missing")
    if _checksum(tensors) != expected:
        raise CheckpointError(f"{tensors} is corrupt: its SHA-256 differs from the one in {STATE}")
    return Snapshot(step, best, load_file(tensors))


def load_newest(directory: Path) -> tuple[Snapshot, list[CheckpointError]]:
    """The newest snapshot that is whole, and why newer ones were passed over.

    Raises CheckpointError, with every reason, when none is whole.
    """
    passed: list[CheckpointError] = []
    for path in reversed(snapshot_paths(directory)):
        try:
            return load_snapshot(path), passed
        except CheckpointError as error:
            passed.append(error)
    reasons = "; ".join(map(str, passed)) or "there are none"
    raise CheckpointError(
        f"no usable checkpoint in {directory} ({reasons}): train from the start in another --output"
    )


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

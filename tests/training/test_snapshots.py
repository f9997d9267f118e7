"""Training checkpoints: the last three, whole or named as broken."""

import json
from pathlib import Path

import pytest
import torch

from training.checkpoint import CheckpointError
from training.snapshots import (
    STATE,
    TENSORS,
    Snapshot,
    load_newest,
    load_snapshot,
    save_snapshot,
    snapshot_paths,
)


def save(directory: Path, *steps: int) -> None:
    for step in steps:
        tensors = {"weight/a": torch.full((3, 2), float(step)), "random": torch.get_rng_state()}
        save_snapshot(directory, Snapshot(step, best_validation=1 / step, tensors=tensors))


def test_a_snapshot_comes_back_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 3)
    loaded = load_snapshot(snapshot_paths(tmp_path)[0])
    assert (loaded.step, loaded.best_validation) == (3, 1 / 3)
    assert torch.equal(loaded.tensors["weight/a"], torch.full((3, 2), 3.0))
    assert torch.equal(loaded.tensors["random"], torch.get_rng_state())


def test_only_the_last_three_are_kept(tmp_path: Path) -> None:
    save(tmp_path, 10, 20, 30, 40, 100)
    assert [path.name for path in snapshot_paths(tmp_path)] == ["step-000030", "step-000040", "step-000100"]


def test_the_same_step_can_be_saved_again(tmp_path: Path) -> None:
    save(tmp_path, 10, 10)
    assert load_newest(tmp_path)[0].step == 10


def damage(path: Path, how: str) -> None:
    tensors, state = path / TENSORS, path / STATE
    if how == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-8])
    elif how == "flipped":
        content = bytearray(tensors.read_bytes())
        content[-1] ^= 1
        tensors.write_bytes(content)
    elif how == "gone":
        tensors.unlink()
    elif how == "no state":
        state.unlink()
    elif how == "half a state":
        state.write_text(state.read_text()[:10])
    else:
        state.write_text(json.dumps({"step": 3}))


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ("truncated", f"{TENSORS} is corrupt"),
        ("flipped", f"{TENSORS} is corrupt"),
        ("gone", f"{TENSORS} is missing"),
        ("no state", f"{STATE} is missing or corrupt"),
        ("half a state", f"{STATE} is missing or corrupt"),
        ("a foreign state", f"{STATE} is missing or corrupt"),
    ],
)
def test_a_broken_snapshot_is_named_and_the_one_before_still_resumes(
    tmp_path: Path, how: str, named: str
) -> None:
    save(tmp_path, 10, 20)
    damage(tmp_path / "step-000020", how)
    snapshot, passed = load_newest(tmp_path)
    assert snapshot.step == 10
    assert [f"step-000020/{named}" in str(error) for error in passed] == [True]


def test_without_a_whole_snapshot_every_reason_is_told(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no usable checkpoint .*there are none"):
        load_newest(tmp_path)
    save(tmp_path, 10, 20)
    damage(tmp_path / "step-000010", "gone")
    damage(tmp_path / "step-000020", "flipped")
    with pytest.raises(CheckpointError, match=r"step-000020.*corrupt.*step-000010.*missing"):
        load_newest(tmp_path)

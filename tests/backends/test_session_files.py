"""Parked states on disk: what comes back is what was written, or nothing."""

import errno
import os
import random
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from backends.causal_lm.caching import session_files
from backends.causal_lm.caching.prefixes import Prefixes
from backends.causal_lm.caching.session_files import (
    Parked,
    SessionDirectory,
    SessionFileError,
    read_state,
    write_state,
)

KEYS = [f"{number:032x}" for number in range(10)]


def parked(seed: int, num_tokens: int = 40, size: int = 1000) -> Parked:
    generator = np.random.default_rng(seed)
    tokens = generator.integers(0, 9999, num_tokens).astype(np.int32)
    return Parked(tokens, generator.integers(0, 256, size).astype(np.uint8))


def equal(one: Parked, other: Parked) -> bool:
    return np.array_equal(one.tokens, other.tokens) and np.array_equal(one.state, other.state)


def files(path: Path) -> list[Path]:
    return sorted(path.iterdir())


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as on a full disk."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_state_comes_back_to_the_bit(tmp_path: Path) -> None:
    for size in (0, 1, 4097):
        written = parked(size, num_tokens=size + 1, size=size)
        write_state(tmp_path / "a", written, "model")
        assert equal(read_state(tmp_path / "a", "model"), written)
    assert files(tmp_path) == [tmp_path / "a"]


def test_every_torn_or_changed_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_state(path, parked(1), "model")
    good = path.read_bytes()
    rng = random.Random(5)
    damaged = [good[:length] for length in (0, 5, 20, 40, len(good) // 2, len(good) - 1)]
    damaged += [good + b"x", b"\0" * len(good), rng.randbytes(len(good))]
    for _ in range(300):
        place, bit = rng.randrange(len(good)), 1 << rng.randrange(8)
        damaged.append(good[:place] + bytes([good[place] ^ bit]) + good[place + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(SessionFileError):
            read_state(path, "model")
    path.write_bytes(good)
    assert equal(read_state(path, "model"), parked(1))


def test_a_state_of_another_model_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "a", parked(1), "model")
    with pytest.raises(SessionFileError, match="another model"):
        read_state(tmp_path / "a", "other model")


def test_a_directory_opened_again_knows_its_states(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "model", 10**6)
    for seed, key in enumerate(KEYS):
        directory.write(key, parked(seed, num_tokens=10 + seed))
    again = SessionDirectory(tmp_path, "model", 10**6)
    assert (len(again), again.nbytes) == (10, directory.nbytes)
    assert all(equal(again.read(key), parked(seed, 10 + seed)) for seed, key in enumerate(KEYS))
    tokens = np.append(parked(7, 17).tokens, [1, 2])
    assert again.longest(Prefixes(tokens), 19) == (KEYS[7], 17)
    assert again.longest(Prefixes(tokens), 16) is None
    assert again.begins(KEYS[7], Prefixes(tokens), 17)
    assert not again.begins(KEYS[6], Prefixes(tokens), 17)


def test_a_session_has_one_file_its_latest(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "model", 10**6)
    for seed in range(3):
        directory.write(KEYS[0], parked(seed))
    assert len(files(tmp_path)) == len(directory) == 1
    assert equal(directory.read(KEYS[0]), parked(2))


def test_of_two_files_of_a_session_the_newer_counts(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "model", 10**6)
    directory.write(KEYS[0], parked(0))
    (old,) = files(tmp_path)
    content = old.read_bytes()
    directory.write(KEYS[0], parked(1))
    old.write_bytes(content)
    os.utime(old, (1, 1))
    again = SessionDirectory(tmp_path, "model", 10**6)
    assert (len(files(tmp_path)), len(again)) == (1, 1)
    assert equal(again.read(KEYS[0]), parked(1))


def test_the_least_recently_used_files_make_room(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "model", 4500)
    for seed in range(3):
        directory.write(KEYS[seed], parked(seed))
    directory.read(KEYS[0])
    directory.write(KEYS[3], parked(3))
    assert [key in directory for key in KEYS[:4]] == [True, False, True, True]
    assert sum(path.stat().st_size for path in files(tmp_path)) == directory.nbytes <= 4500
    assert len(SessionDirectory(tmp_path, "model", 1500)) == len(files(tmp_path)) == 1


def test_a_state_larger_than_the_budget_drives_out_nothing(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "model", 2000)
    directory.write(KEYS[0], parked(0))
    with pytest.raises(OSError, match="session_disk_bytes"):
        directory.write(KEYS[1], parked(1, size=3000))
    assert equal(directory.read(KEYS[0]), parked(0))


def test_what_a_full_disk_cut_short_leaves_no_file(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "model", 10**6)
    directory.write(KEYS[0], parked(0))
    with largest_file(500), pytest.raises(OSError, match="File too large") as error:
        directory.write(KEYS[0], parked(1))
    assert error.value.errno == errno.EFBIG
    assert len(files(tmp_path)) == 1
    assert equal(directory.read(KEYS[0]), parked(0))


def test_leftovers_go_and_strangers_stay(tmp_path: Path) -> None:
    (tmp_path / "a.partial").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / f"{KEYS[0]}.0.{'0' * 64}.session").write_text("no tokens")
    directory = SessionDirectory(tmp_path, "model", 0)
    assert (len(directory), len(files(tmp_path))) == (0, 2)


def test_a_file_that_was_removed_meanwhile_is_an_error_and_forgotten(tmp_path: Path) -> None:
    directory = SessionDirectory(tmp_path, "model", 10**6)
    directory.write(KEYS[0], parked(0))
    files(tmp_path)[0].unlink()
    with pytest.raises(OSError, match="No such file"):
        directory.read(KEYS[0])
    assert (KEYS[0] in directory, directory.nbytes) == (False, 0)


def test_a_state_that_took_the_place_of_the_one_being_read_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = SessionDirectory(tmp_path, "model", 10**6)
    directory.write(KEYS[0], parked(0))

    def overtaken(path: Path, identity: str) -> Parked:
        directory.write(KEYS[0], parked(1))
        return read_state(path, identity)

    monkeypatch.setattr(session_files, "read_state", overtaken)
    with pytest.raises(OSError, match="No such file"):
        directory.read(KEYS[0])
    monkeypatch.undo()
    assert equal(directory.read(KEYS[0]), parked(1))

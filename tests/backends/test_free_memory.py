"""What may still be taken, by the machine and by the container around the process."""

from pathlib import Path

import pytest

from backends.causal_lm.runtime.free_memory import free_memory

GIB = 2**30


def machine(path: Path, gib: int) -> Path:
    file = path / "meminfo"
    file.write_text(f"MemTotal: {99 * 2**20} kB\nMemFree: 5 kB\nMemAvailable:  {gib * 2**20} kB\n")
    return file


@pytest.mark.parametrize(
    ("limit", "expected"),
    [("max", 20 * GIB), (str(8 * GIB), 6 * GIB), (str(64 * GIB), 20 * GIB), (str(2 * GIB), 0)],
)
def test_the_smaller_of_machine_and_container_counts(tmp_path: Path, limit: str, expected: int) -> None:
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{3 * GIB}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2 * GIB}\ninactive_file {1 * GIB}\n")
    assert free_memory(machine(tmp_path, 20), tmp_path) == expected


def test_without_a_container_it_is_the_machines(tmp_path: Path) -> None:
    assert free_memory(machine(tmp_path, 20), tmp_path / "none") == 20 * GIB
    assert free_memory() > 0

"""One row seen several times over: the same memory, and nobody else's."""

import gc
import mmap

import numpy as np
import pytest

from backends.causal_lm.runtime.memory import SlotMemory

ROW = (2, mmap.PAGESIZE // 16, 2)  # one page of float32


def mappings() -> int:
    with open("/proc/self/maps") as maps:
        return sum("memfd:states" in line for line in maps)


@pytest.mark.parametrize("row", [0, 3])
def test_what_is_written_to_one_is_in_all_and_in_the_row_alone(row: int) -> None:
    memory = SlotMemory(5, ROW, "float32")
    memory.array[...] = -1
    same = memory.repeated(row, 4)
    for time in range(4):
        same[time, :, time] = time
    assert same.shape == (4, *ROW)
    for time in range(4):
        assert np.array_equal(same[time], memory.array[row])
        assert (memory.array[row, :, time] == time).all()
    others = np.delete(memory.array, row, axis=0)
    assert (others == -1).all()
    memory.array[row] = 7
    assert (same == 7).all()


def test_rows_begin_as_zeros() -> None:
    memory = SlotMemory(3, ROW, "float16")
    assert memory.array.dtype == np.float16
    assert not memory.array.any()


def test_a_row_of_broken_pages_cannot_be_repeated() -> None:
    assert SlotMemory(2, ROW, "float32").is_repeatable
    assert not SlotMemory(2, (2, 5, 3), "float32").is_repeatable


def test_what_nobody_holds_is_unmapped() -> None:
    gc.collect()
    before = mappings()
    memory = SlotMemory(2, ROW, "float32")
    whole = mappings()
    same = memory.repeated(1, 3)
    repeated = mappings()
    assert repeated > whole > before
    view = same[1:2]
    del same
    gc.collect()
    assert mappings() == repeated, "a view holds it"
    del view
    gc.collect()
    assert mappings() == whole
    del memory
    gc.collect()
    assert mappings() == before

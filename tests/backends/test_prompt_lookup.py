"""Drafts out of the text so far: the right place is found, and text that repeats nothing is left alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.causal_lm.sequences.prompt_lookup import LONGEST_MATCH, SHORTEST_MATCH, Drafter, look_up


def found(text: list[int], count: int) -> list[int]:
    return look_up(np.array(text, np.int64), count).tolist()


def plainly(text: list[int], count: int) -> list[int]:
    """The reference: every place of the past, the longest endings first."""
    for size in range(LONGEST_MATCH, SHORTEST_MATCH - 1, -1):
        places = [stop for stop in range(size, len(text)) if text[stop - size : stop] == text[-size:]]
        if places and count > 0:
            whole = [stop for stop in places if stop + count <= len(text)]
            start = whole[-1] if whole else places[0]
            return text[start : start + count]
    return []


@pytest.mark.parametrize(
    ("text", "count", "expected"),
    [
        ([1, 2, 3, 4, 5, 1, 2], 3, [3, 4, 5]),
        ([1, 2, 3, 9, 2, 3, 7, 1, 2, 3], 2, [9, 2]),  # three tokens back beats two
        ([1, 2, 8, 1, 2, 9, 1, 2], 1, [9]),  # of equals the later
        ([1, 2, 8, 8, 8, 1, 2, 9, 1, 2], 5, [8, 8, 8, 1, 2]),  # with enough behind it
        ([7, 7, 7, 7, 7], 1, [7]),
        ([7, 7, 7, 7, 7], 2, [7]),  # four tokens back there is one behind, three back would be two
        ([1, 2, 3, 4], 3, []),
        ([5, 1, 5], 3, []),  # one token alone says too little
        ([1, 2, 1, 2], 0, []),
        ([1], 3, []),
        ([], 3, []),
    ],
)
def test_a_draft_is_what_followed_the_longest_ending_before(
    text: list[int], count: int, expected: list[int]
) -> None:
    assert found(text, count) == expected


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(0, 9))
def test_the_look_up_is_that_of_a_plain_search(text: list[int], count: int) -> None:
    assert found(text, count) == plainly(text, count)


def drafter(text: list[int], longest: int = 8) -> Drafter:
    return Drafter(np.array(text, np.int64), len(text) + 500, longest)


def test_text_that_comes_is_looked_up_too() -> None:
    drafts = drafter([1, 2, 3])
    for token in (4, 5, 1, 2):
        drafts.extend(token)
    assert drafts.draft(2).tolist() == [3, 4]


def test_a_draft_is_as_long_as_what_was_right_of_the_last_and_doubles_when_all_was() -> None:
    drafts, sizes = drafter([1, 2, 3] * 20), []
    for drafted, accepted in ((8, 3), (3, 3), (6, 6), (8, 1), (1, 1)):
        drafts.judge(drafted, accepted)
        sizes.append(drafts.draft(9).size)
    assert sizes == [3, 6, 8, 1, 2]


def test_drafts_that_are_never_right_become_rare() -> None:
    drafts, verified = drafter([1, 2] * 4), 0
    for number in range(400):
        if (draft := drafts.draft(9)).size:
            verified += 1
            drafts.judge(draft.size, 0)
        drafts.extend([1, 2][number % 2])
    assert 5 <= verified <= 12


def test_a_pause_ends_and_a_right_draft_ends_the_distrust() -> None:
    drafts = drafter([1, 2] * 8)
    drafts.judge(8, 0)
    waits = []
    for _ in range(3):
        drafts.judge(1, 0)
        drafts.judge(2, 2)
        drafts.judge(1, 0)
        waited = 0
        while not drafts.draft(4).size:
            drafts.extend([1, 2][waited % 2])
            waited += 1
        waits.append(waited)
    assert waits == [2, 2, 2]

"""A cancel that comes before its request is kept for it, for a while."""

from backends.causal_lm.scheduling.cancellation import EarlyCancels


def test_a_cancel_waits_for_its_request_and_is_used_once() -> None:
    cancels = EarlyCancels()
    cancels.cancel("a", 0.0)
    assert [cancels.take("a", 1.0), cancels.take("a", 1.0), cancels.take("b", 1.0)] == [True, False, False]


def test_a_cancel_is_forgotten_after_ten_seconds() -> None:
    cancels = EarlyCancels()
    cancels.cancel("a", 0.0)
    assert not cancels.take("a", 10.5)


def test_a_cancel_after_the_end_does_not_hit_the_next_use_of_the_id() -> None:
    cancels = EarlyCancels()
    cancels.end("a", 0.0)
    cancels.cancel("a", 1.0)
    assert not cancels.take("a", 2.0)


def test_what_is_remembered_is_bounded() -> None:
    cancels = EarlyCancels()
    for number in range(2000):
        cancels.cancel(str(number), 0.0)
    assert [cancels.take("0", 0.0), cancels.take("1999", 0.0)] == [False, True]

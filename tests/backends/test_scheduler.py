"""The scheduling policy, without tensors: who runs, in which row, and what moves."""

from collections.abc import Sequence
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.causal_lm.scheduling.scheduler import Chunk, Move, OverloadedError, Row, Scheduler
from backends.causal_lm.settings import EngineSettings


class Job:
    def __init__(self, *prompt_lengths: int) -> None:
        self.state_bytes, self.priority, self.user = 0, 0, ""
        self.deadline: float | None = None
        self.prompt_lengths: Sequence[int] = prompt_lengths
        self.lengths = [0] * len(prompt_lengths)


def scheduler(**values: int) -> Scheduler[Job]:
    return Scheduler(
        EngineSettings(**{"slots": 2, "queue_size": 1, "prefill_tokens": 10, "interleave_tokens": 4} | values)
    )


def first_chunk(policy: Scheduler[Job]) -> Chunk[Job] | None:
    """What a new step reads first."""
    policy.begin_step()
    return policy.next_chunk()


def read_whole(policy: Scheduler[Job]) -> Job:
    while not policy.complete(chunk := first_chunk(policy)):  # type: ignore[arg-type]
        pass
    return chunk.sequence  # type: ignore[union-attr]


def test_sequences_are_admitted_in_the_order_they_came() -> None:
    policy, jobs = scheduler(), [Job(3), Job(3), Job(3)]
    for job in jobs:
        policy.enqueue(job)
    assert [read_whole(policy), read_whole(policy)] == jobs[:2]
    assert first_chunk(policy) is None
    policy.remove(jobs[0])
    assert first_chunk(policy).sequence is jobs[2]  # type: ignore[union-attr]


def test_full_slots_and_a_full_queue_refuse_with_the_queues_length() -> None:
    policy = scheduler()
    for _ in range(2):
        policy.enqueue(Job(3))
        read_whole(policy)
    policy.enqueue(Job(3))
    with pytest.raises(OverloadedError, match=r"^overloaded: queue: 1 requests wait already"):
        policy.enqueue(Job(3))


def test_a_burst_fits_slots_and_queue_before_any_of_it_runs() -> None:
    policy = scheduler()
    for _ in range(3):
        policy.enqueue(Job(3))
    with pytest.raises(OverloadedError):
        policy.enqueue(Job(3))


@pytest.mark.parametrize("limits", [(4, 4), (10, 5), (66, 33), (256, 32), (1000, 100)])
@pytest.mark.parametrize("beside", [False, True])
def test_chunks_cover_a_prompt_once_and_no_token_is_alone_in_a_kernels_block(
    limits: tuple[int, int], beside: bool
) -> None:
    for length in range(2, 400):
        policy = scheduler(prefill_tokens=limits[0], interleave_tokens=limits[1])
        if beside:
            policy.enqueue(Job(1))
            read_whole(policy)
        policy.enqueue(job := Job(length))
        position = 0
        while job not in policy.running:
            chunk = first_chunk(policy)
            assert chunk is not None
            assert (chunk.sequence, chunk.row, chunk.start) == (job, int(beside), position)
            assert 2 <= chunk.stop - chunk.start <= limits[beside]
            assert all((chunk.stop - chunk.start) % block != 1 for block in (32, 64, 128, 256))
            position = chunk.stop
            policy.complete(chunk)
        assert [position] == job.lengths == [length]


def test_a_prompt_of_one_token_is_one_chunk() -> None:
    policy = scheduler()
    policy.enqueue(job := Job(1))
    assert read_whole(policy) is job


def test_only_one_prompt_is_read_at_a_time() -> None:
    policy, first, second = scheduler(), Job(25), Job(5)
    policy.enqueue(first)
    policy.enqueue(second)
    order = [read_whole(policy), read_whole(policy)]
    assert order == [first, second]


def chunks_of_a_step(policy: Scheduler[Job]) -> list[tuple[int, int]]:
    """(start, stop) of what one step reads."""
    policy.begin_step()
    chunks = []
    while chunk := policy.next_chunk():
        chunks.append((chunk.start, chunk.stop))
        policy.complete(chunk)
    return chunks


def test_a_step_reads_short_prompts_until_its_budget_is_spent() -> None:
    policy = scheduler(slots=16, queue_size=16, prefill_tokens=256, interleave_tokens=32)
    for length in (100, 100, 40, 20, 17, 5, 5, 1, 1):
        policy.enqueue(Job(length))
    assert chunks_of_a_step(policy) == [(0, 100), (0, 100), (0, 40)], "256 tokens: 16 are left, 20 don't fit"
    assert chunks_of_a_step(policy) == [(0, 20)], "32 beside those that run"
    assert chunks_of_a_step(policy) == [(0, 17)]
    assert chunks_of_a_step(policy) == [(0, 5), (0, 5)], "a short one costs as much as one of 16"
    assert chunks_of_a_step(policy) == [(0, 1), (0, 1)]
    assert chunks_of_a_step(policy) == []


def test_what_a_step_does_not_read_still_waits() -> None:
    policy = scheduler(slots=16, queue_size=16, prefill_tokens=64, interleave_tokens=32)
    policy.enqueue(Job(60))
    policy.enqueue(late := Job(60))
    assert chunks_of_a_step(policy) == [(0, 60)]
    assert list(policy.waiting) == [late]
    assert chunks_of_a_step(policy) == [(0, 32)]
    assert policy.reading is late
    assert chunks_of_a_step(policy) == [(32, 60)]


def test_prompts_of_one_sequence_are_read_in_turn_into_rows_side_by_side_and_run_together() -> None:
    policy, alone, three = scheduler(slots=4), Job(3), Job(5, 12, 2)
    policy.enqueue(alone)
    policy.enqueue(three)
    read_whole(policy)
    chunks = []
    while policy.reading or policy.waiting:
        chunk = first_chunk(policy)
        assert chunk is not None
        chunks.append((chunk.prompt, chunk.row, chunk.start, chunk.stop, chunk.ends_prompt))
        assert policy.running == [alone]
        policy.complete(chunk)
    assert chunks == [
        (0, 1, 0, 3, False), (0, 1, 3, 5, True),
        (1, 2, 0, 4, False), (1, 2, 4, 8, False), (1, 2, 8, 12, True),
        (2, 3, 0, 2, True),
    ]  # fmt: skip
    assert policy.running == [alone, three]
    assert policy.rows == [(alone, 0), (three, 0), (three, 1), (three, 2)]


def test_a_sequence_waits_until_all_of_its_rows_are_free() -> None:
    policy, first, second, pair = scheduler(slots=3, queue_size=9), Job(2), Job(2), Job(2, 2)
    for job in (first, second, pair):
        policy.enqueue(job)
    assert [read_whole(policy), read_whole(policy)] == [first, second]
    assert first_chunk(policy) is None
    policy.remove(second)
    assert read_whole(policy) is pair
    assert [row.sequence for row in policy.rows] == [first, pair, pair]


def test_slots_and_queue_count_rows() -> None:
    policy = scheduler(slots=2, queue_size=3)
    policy.enqueue(Job(2, 2))
    policy.enqueue(Job(2, 2))
    with pytest.raises(OverloadedError):
        policy.enqueue(Job(2, 2))
    policy.enqueue(Job(2))


def test_scattered_rows_are_freed_and_no_other() -> None:
    policy, first, second, pair = scheduler(slots=4, queue_size=9), Job(2), Job(2), Job(2, 2)
    for job in (first, second, pair):
        policy.enqueue(job)
        read_whole(policy)
    assert policy.remove(first) == [Move(3, 0, 2)]
    assert policy.rows == [(pair, 1), (second, 0), (pair, 0)]
    assert policy.remove(pair) == [Move(1, 0, 2)]
    assert policy.rows == [(second, 0)]


def test_users_take_turns_and_a_lower_priority_goes_first() -> None:
    policy = scheduler(slots=1, queue_size=9)
    jobs = [Job(2) for _ in range(5)]
    for job, (user, priority) in zip(jobs, [("a", 0), ("a", 0), ("a", 0), ("b", 0), ("c", -1)], strict=True):
        job.user, job.priority = user, priority
        policy.enqueue(job)
    order = []
    for _ in jobs:
        order.append(jobs.index(job := read_whole(policy)))
        policy.remove(job)
    assert order == [4, 0, 3, 1, 2]


def test_states_that_would_not_fit_wait_and_nobody_goes_before_them() -> None:
    policy = scheduler(slots=9, queue_size=9, state_bytes=100)
    large, medium, small = Job(2), Job(2), Job(2)
    large.state_bytes, medium.state_bytes, small.state_bytes = 70, 40, 10
    for job in (large, medium, small):
        policy.enqueue(job)
    assert read_whole(policy) is large
    assert first_chunk(policy) is None
    policy.remove(large)
    assert [read_whole(policy), read_whole(policy)] == [medium, small]


def test_a_sequence_larger_than_the_room_runs_alone() -> None:
    policy = scheduler(slots=9, queue_size=9, state_bytes=100)
    huge, small = Job(2), Job(2)
    huge.state_bytes, small.state_bytes = 500, 1
    policy.enqueue(huge)
    policy.enqueue(small)
    assert read_whole(policy) is huge
    assert first_chunk(policy) is None


def test_who_waits_too_long_is_known_and_who_runs_is_not_meant() -> None:
    policy = scheduler(slots=1, queue_size=9)
    jobs = [Job(2), Job(2), Job(2), Job(2)]
    for job, deadline in zip(jobs, (1.0, 1.0, None, 5.0), strict=True):
        job.deadline = deadline
        policy.enqueue(job)
    read_whole(policy)
    assert policy.expired(1.0) == []
    assert policy.expired(2.0) == [jobs[1]]


class Rows:
    """What each row of the state would hold, moved as the policy says."""

    def __init__(self, policy: Scheduler[Job]) -> None:
        self.policy = policy
        self.held: dict[int, tuple[Job, int, int]] = {}  # row → sequence, prompt, tokens

    def read(self) -> None:
        chunk = first_chunk(self.policy)
        if chunk is not None:
            self.held[chunk.row] = (chunk.sequence, chunk.prompt, chunk.stop)
            self.policy.complete(chunk)

    def decode(self) -> None:
        for row, (job, prompt) in enumerate(self.policy.rows):
            job.lengths[prompt] += 1
            self.held[row] = (job, prompt, job.lengths[prompt])

    def remove(self, job: Job) -> None:
        for move in self.policy.remove(job):
            assert move.length == self.held[move.source][2]
            self.held[move.target] = self.held[move.source]

    def check(self) -> None:
        rows = list(self.policy.rows)
        if reading := self.policy.reading:
            rows += [Row(reading, prompt) for prompt in range(len(reading.lengths))]
        for row, (job, prompt) in enumerate(rows):
            assert job.lengths[prompt] == 0 or self.held[row] == (job, prompt, job.lengths[prompt])


@settings(deadline=None, derandomize=True, max_examples=150)
@given(
    st.lists(st.tuples(st.sampled_from(["enqueue", "read", "read", "decode", "remove"]), st.integers(0, 90)))
)
def test_rows_stay_dense_and_hold_their_sequences_through_any_course(actions: list[tuple[str, int]]) -> None:
    policy = scheduler(slots=4, queue_size=3)
    rows = Rows(policy)
    for action, number in actions:
        if action == "enqueue":
            with suppress(OverloadedError):
                policy.enqueue(Job(*range(number // 3 + 1, number // 3 + 2 + number % 3)))
        elif action == "remove" and len(policy):
            rows.remove(list(policy)[number % len(policy)])
        elif action == "read":
            rows.read()
        else:
            rows.decode()
        held = [*policy.running, *([policy.reading] if policy.reading else [])]
        assert sum(len(job.lengths) for job in held) <= 4
        assert [row.sequence in policy.running for row in policy.rows] == [True] * len(policy.rows)
        rows.check()

"""Who runs next: pure policy, no tensors, no clock, no thread."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

from backends.causal_lm.scheduling.waiting import WaitingLine
from backends.causal_lm.settings import EngineSettings

_KERNEL_BLOCK = 32  # ONNX Runtime's attention takes twice the head size, a multiple of this
_LEAST_COST = 16  # tokens; a shorter chunk takes about as long as one of so many


class Schedulable(Protocol):
    """What the policy must know of a sequence.

    Each of its prompts' lengths, and what their rows hold; the bytes that its states may take in the end;
    until when it may wait, by the engine's clock, None for ever; what decides whose turn it is.
    """

    @property
    def prompt_lengths(self) -> Sequence[int]: ...

    @property
    def state_bytes(self) -> int: ...

    @property
    def deadline(self) -> float | None: ...

    @property
    def priority(self) -> int: ...

    @property
    def user(self) -> str: ...

    lengths: list[int]


S = TypeVar("S", bound=Schedulable)


class OverloadedError(Exception):
    """Slots and queue are full; `waiting` is the queue's length."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"overloaded: queue: {waiting} requests wait already; try again later")
        self.waiting = waiting


class Row(NamedTuple, Generic[S]):
    """One prompt of a sequence, which holds a row."""

    sequence: S
    prompt: int

    @property
    def length(self) -> int:
        """How many tokens the row holds."""
        return self.sequence.lengths[self.prompt]


@dataclass(frozen=True, slots=True)
class Chunk(Generic[S]):
    """Tokens [start, stop) of one prompt of a sequence, to be run in `row`."""

    sequence: S
    prompt: int
    row: int
    start: int
    stop: int

    @property
    def ends_prompt(self) -> bool:
        """Whether nothing of the prompt comes after it."""
        return self.stop == self.sequence.prompt_lengths[self.prompt]


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `length` tokens of state from row `source` to row `target`."""

    source: int
    target: int
    length: int


class Scheduler(Generic[S]):
    """One prompt at a time, in chunks, between the steps of the running; `waiting` says who is next.

    A step has a budget of prompt tokens. One chunk is always read; after it prompts whose rest fits what is
    left of the budget, so that a burst of short ones starts together.
    Who is next is let in when there is a row for each of its prompts and room for its states, or when it is
    alone; nobody goes before it meanwhile. A sequence holds a row per prompt, all or none. Those of running
    sequences are `rows`, [0, n); those of the sequence being read follow, in the order of its prompts.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.waiting: WaitingLine[S] = WaitingLine()
        self.reading: S | None = None
        self.running: list[S] = []
        self.rows: list[Row[S]] = []
        self._budget = self._spent = 0

    def __iter__(self) -> Iterator[S]:
        yield from self.running
        if self.reading is not None:
            yield self.reading
        yield from self.waiting

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting) + (self.reading is not None)

    def enqueue(self, sequence: S) -> None:
        """Let a sequence wait for its turn; raises OverloadedError when slots and queue are full."""
        asked = len(sequence.lengths) + sum(len(other.lengths) for other in self)
        if asked > self._settings.slots + self._settings.queue_size:
            raise OverloadedError(len(self.waiting))
        self.waiting.append(sequence)

    def begin_step(self) -> None:
        """A new step, whose budget of prompt tokens is whole."""
        self._spent = 0
        self._budget = self._settings.interleave_tokens if self.running else self._settings.prefill_tokens

    def next_chunk(self) -> Chunk[S] | None:
        """The next prompt chunk of this step; lets the next waiting sequence in when there is room for it."""
        sequence = self.reading or self._following()
        if sequence is None:
            return None
        prompt = next(_unread(sequence))
        start = sequence.lengths[prompt]
        size = self._chunk_size(sequence.prompt_lengths[prompt] - start)
        if size == 0:
            return None
        if sequence is not self.reading:
            self.waiting.take(sequence)
            self.reading = sequence
        return Chunk(sequence, prompt, len(self.rows) + prompt, start, start + size)

    def complete(self, chunk: Chunk[S]) -> bool:
        """Note that a chunk has run; true when its sequence's prompts are now whole and it runs."""
        sequence = chunk.sequence
        sequence.lengths[chunk.prompt] = chunk.stop
        self._spent += max(_LEAST_COST, chunk.stop - chunk.start)
        if any(True for _ in _unread(sequence)):
            return False
        self.reading = None
        self.running.append(sequence)
        self.rows.extend(Row(sequence, prompt) for prompt in range(len(sequence.lengths)))
        return True

    def remove(self, sequence: S) -> list[Move]:
        """Forget a sequence wherever it is; the moves, in order, that keep the rows dense."""
        if sequence is self.reading:
            self.reading = None
            return []
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return []
        self.running.remove(sequence)
        return [*self._fill(sequence), *self._follow(len(sequence.lengths))]

    def expired(self, now: float) -> list[S]:
        """Those that have waited for longer than they may."""
        return [one for one in self.waiting if one.deadline is not None and one.deadline < now]

    def _following(self) -> S | None:
        """The next waiting sequence, if there is room for it."""
        following = self.waiting.first(Counter(row.sequence.user for row in self.rows))
        return following if following is not None and self._has_room(following) else None

    def _has_room(self, sequence: S) -> bool:
        if len(self.rows) + len(sequence.lengths) > self._settings.slots:
            return False
        held = sum(other.state_bytes for other in self.running)
        return not held or held + sequence.state_bytes <= (self._settings.state_bytes or math.inf)

    def _fill(self, sequence: S) -> Iterator[Move]:
        """Free a running sequence's rows, the last first; each is filled from the last one left."""
        for row in reversed([row for row, held in enumerate(self.rows) if held.sequence is sequence]):
            last = self.rows.pop()
            if row < len(self.rows):
                self.rows[row] = last
                yield Move(len(self.rows), row, last.length)

    def _follow(self, freed: int) -> Iterator[Move]:
        """Move what has been read of the next sequence down by the freed rows."""
        for prompt, length in enumerate(self.reading.lengths if self.reading else ()):
            if length:
                row = len(self.rows) + prompt
                yield Move(row + freed, row, length)

    def _chunk_size(self, remaining: int) -> int:
        """How many of a prompt's `remaining` tokens are read now; 0 for none in this step."""
        if self._spent and max(_LEAST_COST, remaining) > self._budget - self._spent:
            return 0
        size = min(remaining, self._budget)
        # Kernels round otherwise for a token that is alone in a block. A chunk neither holds nor leaves one,
        # so that the logits do not depend on how a prompt was cut.
        while size > 1 and (size % _KERNEL_BLOCK == 1 or remaining - size == 1):
            size -= 1
        return size


def _unread(sequence: Schedulable) -> Iterator[int]:
    """The prompts that are not whole yet."""
    lengths = zip(sequence.lengths, sequence.prompt_lengths, strict=True)
    return (prompt for prompt, (length, whole) in enumerate(lengths) if length < whole)

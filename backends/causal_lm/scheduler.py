"""Who runs next: pure policy, no tensors, no clock, no thread."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from backends.causal_lm.settings import EngineSettings

_KERNEL_BLOCK = 32  # ONNX Runtime's attention takes twice the head size, a multiple of this


class Schedulable(Protocol):
    """What the policy must know of a sequence: its prompt's length and how many tokens its row holds."""

    @property
    def prompt_length(self) -> int: ...

    length: int


S = TypeVar("S", bound=Schedulable)


class OverloadedError(Exception):
    """Slots and queue are full; `waiting` is the queue's length."""

    def __init__(self, waiting: int) -> None:
        super().__init__(f"overloaded: queue: {waiting} requests wait already; try again later")
        self.waiting = waiting


@dataclass(frozen=True, slots=True)
class Chunk(Generic[S]):
    """Prompt tokens [start, stop) of a sequence, to be run in `row`."""

    sequence: S
    row: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Move:
    """Copy `length` tokens of state from row `source` to row `target`."""

    source: int
    target: int
    length: int


class Scheduler(Generic[S]):
    """First come, first served; one prompt at a time, in chunks, between the steps of the running.

    Running sequences hold rows [0, n), the one whose prompt is being read holds row n.
    """

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self.waiting: deque[S] = deque()
        self.reading: S | None = None
        self.running: list[S] = []

    def __iter__(self) -> Iterator[S]:
        yield from self.running
        if self.reading is not None:
            yield self.reading
        yield from self.waiting

    def __len__(self) -> int:
        return len(self.running) + len(self.waiting) + (self.reading is not None)

    def enqueue(self, sequence: S) -> None:
        """Let a sequence wait for its turn; raises OverloadedError when slots and queue are full."""
        if len(self) >= self._settings.slots + self._settings.queue_size:
            raise OverloadedError(len(self.waiting))
        self.waiting.append(sequence)

    def next_chunk(self) -> Chunk[S] | None:
        """The prompt chunk of this step, admitting the next waiting sequence when a row is free."""
        row = len(self.running)
        if self.reading is None:
            if not self.waiting or row == self._settings.slots:
                return None
            self.reading = self.waiting.popleft()
        start = self.reading.length
        return Chunk(self.reading, row, start, start + self._chunk_size(self.reading.prompt_length - start))

    def complete(self, chunk: Chunk[S]) -> bool:
        """Note that a chunk has run; true when its sequence's prompt is now whole and it runs."""
        chunk.sequence.length = chunk.stop
        if chunk.stop < chunk.sequence.prompt_length:
            return False
        self.reading = None
        self.running.append(chunk.sequence)
        return True

    def remove(self, sequence: S) -> list[Move]:
        """Forget a sequence wherever it is; the moves, in order, that keep the rows dense."""
        if sequence is self.reading:
            self.reading = None
            return []
        if sequence not in self.running:
            self.waiting.remove(sequence)
            return []
        row = self.running.index(sequence)
        last = len(self.running) - 1
        moves = [Move(last, row, self.running[last].length)] if row != last else []
        self.running[row] = self.running[last]
        self.running.pop()
        if self.reading is not None:
            moves.append(Move(last + 1, last, self.reading.length))
        return moves

    def _chunk_size(self, remaining: int) -> int:
        limit = self._settings.interleave_tokens if self.running else self._settings.prefill_tokens
        size = min(remaining, limit)
        # Kernels round otherwise for a token that is alone in a block. A chunk neither holds nor leaves one,
        # so that the logits do not depend on how a prompt was cut.
        while size > 1 and (size % _KERNEL_BLOCK == 1 or remaining - size == 1):
            size -= 1
        return size

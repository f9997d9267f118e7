"""Who of those that wait is next: pure policy, no clock, no thread."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Generic, Protocol, TypeVar

_REMEMBERED = 4096  # users whose last turn is known


class Waiting(Protocol):
    """What the policy must know of one that waits: the lower its priority the sooner; whose it is."""

    @property
    def priority(self) -> int: ...

    @property
    def user(self) -> str: ...


W = TypeVar("W", bound=Waiting)


class WaitingLine(Generic[W]):
    """Next is the lowest priority; of these the user of the fewest rows, or whose last turn is longest ago.

    One user's come in the order in which they came, and so do those of all who don't say who they are.
    """

    def __init__(self) -> None:
        self._line: list[W] = []
        self._turns: OrderedDict[str, int] = OrderedDict()
        self._num_turns = 0

    def __iter__(self) -> Iterator[W]:
        return iter(self._line)

    def __len__(self) -> int:
        return len(self._line)

    def append(self, one: W) -> None:
        """Let one wait."""
        self._line.append(one)

    def remove(self, one: W) -> None:
        """Let one go that waits no more."""
        self._line.remove(one)

    def first(self, held: Mapping[str, int]) -> W | None:
        """Who is next, if users hold so many rows each."""

        def rank(one: W) -> tuple[int, int, int]:
            return one.priority, held.get(one.user, 0), self._turns.get(one.user, -1)

        return min(self._line, key=rank, default=None)

    def take(self, one: W) -> None:
        """Let one in: it was its user's turn."""
        self._line.remove(one)
        self._num_turns += 1
        self._turns[one.user] = self._num_turns
        self._turns.move_to_end(one.user)
        if len(self._turns) > _REMEMBERED:
            self._turns.popitem(last=False)

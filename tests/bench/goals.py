"""The ratio to reach beside each contender of `make bench`; who of them is a peer, and who a limit."""

from collections.abc import Sequence

from tests.bench.measure import Row

BARE, MEMORY = "bare session", "memory"
LIMITS = (BARE, MEMORY)
BARE_GOAL = 0.9
MEMORY_GOALS = {"fp32": 0.8, "int8": 0.8}
ALONE_GOAL, TOGETHER_GOAL = 1.1, 1.5  # one stream or a prompt; several streams
EIGHT_STREAMS_GOAL = {"transformers fp32": 3.0}


def goal_beside(contender: str, streams: int, precision: str) -> float | None:
    """The ratio to reach beside `contender` with so many streams; None where it is only told."""
    if contender == BARE:
        return BARE_GOAL
    if contender == MEMORY:
        return MEMORY_GOALS.get(precision)
    together = EIGHT_STREAMS_GOAL.get(contender, TOGETHER_GOAL) if streams == 8 else TOGETHER_GOAL
    return together if streams > 1 else ALONE_GOAL


def best_peer(rows: Sequence[Row]) -> Row:
    """Of one workload's rows, that of the peer which leaves us the lowest ratio."""
    return min((row for row in rows if row.peer_name not in LIMITS), key=lambda row: row.ratio)

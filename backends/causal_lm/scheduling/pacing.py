"""How often a stream's text leaves."""

_FREE_STREAMS = 4
_SECONDS_PER_STREAM = 0.004
_LONGEST_INTERVAL = 0.05


def message_interval(running: int) -> float:
    """Least seconds between two messages of one stream: none with few streams, so that messages never eat the
    cores that compute when there are many."""
    return min(_LONGEST_INTERVAL, max(0, running - _FREE_STREAMS) * _SECONDS_PER_STREAM)

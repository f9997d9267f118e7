"""How often a stream's text leaves."""

_FREE_STREAMS = 4
_SECONDS_PER_MESSAGE = 0.0015  # of a core, all the way to the client
_SHARE = 1 / 8  # of the cores, for messages; the others compute
_LONGEST_INTERVAL = 0.1


def message_interval(running: int, cores: int) -> float:
    """Least seconds between two messages of one stream: none with few streams, so that messages never eat the
    `cores` (those of this process) that compute when there are many."""
    if running <= _FREE_STREAMS:
        return 0.0
    return min(_LONGEST_INTERVAL, running * _SECONDS_PER_MESSAGE / (_SHARE * cores))

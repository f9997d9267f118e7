"""How often a stream's text leaves."""

_SECONDS_PER_MESSAGE = 0.0015  # of a core, all the way to the client
_SHARE = 1 / 8  # of the cores, for messages; the others compute
_SHORTEST_INTERVAL = 1 / 60  # a frame of a screen: nobody sees text sooner
_LONGEST_INTERVAL = 0.1


def message_interval(running: int, cores: int) -> float:
    """Least seconds between two messages of one stream, where `running` streams share `cores`."""
    interval = running * _SECONDS_PER_MESSAGE / (_SHARE * cores)
    return min(max(interval, _SHORTEST_INTERVAL), _LONGEST_INTERVAL)

"""Cancels that overtake their request."""

from collections import OrderedDict

_REMEMBERED = 1024
_SECONDS = 10.0


class EarlyCancels:
    """Remembers, for ten seconds, cancelled ids that no request has had yet.

    In an ensemble a cancel goes straight to the engine while its request may still be in the tokenizer.
    Ids that have just ended are known too, so that a late cancel does not hit the id's next use.
    """

    def __init__(self) -> None:
        self._cancelled: OrderedDict[str, float] = OrderedDict()
        self._ended: OrderedDict[str, float] = OrderedDict()

    def cancel(self, request_id: str, now: float) -> None:
        """Note a cancel of an id that is not under way."""
        if not _recent(self._ended, request_id, now):
            _remember(self._cancelled, request_id, now)

    def end(self, request_id: str, now: float) -> None:
        """Note that the request with this id has ended."""
        _remember(self._ended, request_id, now)

    def take(self, request_id: str, now: float) -> bool:
        """Whether a request that arrives now was cancelled before; asked once."""
        self._ended.pop(request_id, None)
        cancelled = _recent(self._cancelled, request_id, now)
        self._cancelled.pop(request_id, None)
        return cancelled


def _remember(times: OrderedDict[str, float], request_id: str, now: float) -> None:
    times[request_id] = now
    times.move_to_end(request_id)
    while len(times) > _REMEMBERED:
        times.popitem(last=False)


def _recent(times: OrderedDict[str, float], request_id: str, now: float) -> bool:
    return request_id in times and now - times[request_id] <= _SECONDS

"""How a request ends: once, its rows free before its last message leaves."""

import logging
import threading
from collections.abc import Callable

from backends.causal_lm.caching.recall import Recall
from backends.causal_lm.metrics import Metrics
from backends.causal_lm.requests.request import FinishReason
from backends.causal_lm.runtime.runner import Runner
from backends.causal_lm.scheduling.cancellation import EarlyCancels
from backends.causal_lm.scheduling.scheduler import Scheduler
from backends.causal_lm.sequences.sequence import Sequence

_LOGGER = logging.getLogger(__name__)
_NOT_OURS = ("invalid", "timeout")  # what is the matter with the request, or with how much is asked


class Endings:
    """Takes sequences out of the rows and delivers their ends.

    `changed` guards the scheduler's membership and `early_cancels`.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Sequence],
        *,
        recall: Recall,
        early_cancels: EarlyCancels,
        changed: threading.Condition,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._runner, self._scheduler, self._early_cancels = runner, scheduler, early_cancels
        self._recall = recall
        self._changed, self._metrics, self._clock = changed, metrics, clock

    def finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence with its last message."""
        now = self._clock()
        name = "requests_cancelled_total" if reason == "cancelled" else "requests_finished_total"
        self._metrics.add(name, 1)
        self._metrics.observe("e2e_request_latency_seconds", now - sequence.submitted)
        self._remember(sequence)
        try:
            self._release(sequence)
        finally:
            self._end(sequence, lambda: sequence.sink.send(sequence.last_message(reason, now), True))

    def fail(self, sequence: Sequence, code: str, message: str) -> None:
        """End a sequence with an error; `message` is the contract's whole line."""
        level = logging.INFO if code in _NOT_OURS else logging.ERROR
        _LOGGER.log(level, "request %r: %s", sequence.request.id, message)
        self._metrics.add("requests_failed_total", 1)
        try:
            self._release(sequence)
        finally:
            self._end(sequence, lambda: sequence.sink.fail(code, message))

    def fail_internally(self, sequence: Sequence, error: Exception) -> None:
        """End a sequence with an error that is not the client's."""
        message = f"internal: engine: {error or type(error).__name__}; send the request again"
        self.fail(sequence, "internal", message)

    def _end(self, sequence: Sequence, deliver: Callable[[], None]) -> None:
        try:
            deliver()
        except Exception:
            _LOGGER.exception("the end of request %r was not taken", sequence.request.id)

    def _remember(self, sequence: Sequence) -> None:
        """Keep the state of a running sequence; where that fails, its answer is still whole."""
        place = next((i for i, row in enumerate(self._scheduler.rows) if row.sequence is sequence), None)
        if place is None:
            return
        try:
            self._recall.keep_answer(sequence, place)
        except Exception:
            _LOGGER.exception("the state of request %r could not be kept", sequence.request.id)

    def _release(self, sequence: Sequence) -> None:
        """Take a sequence out of the rows, and keep them dense."""
        with self._changed:
            moves = self._scheduler.remove(sequence)
            self._early_cancels.end(sequence.request.id, self._clock())
        for move in moves:
            self._runner.move(move.source, move.target, move.length)

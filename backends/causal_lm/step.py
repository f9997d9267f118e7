"""One step of the engine: prompt chunks within a budget, then a token for every running sequence."""

import logging
import os
import threading
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.caching.recall import Recall
from backends.causal_lm.ending import Endings
from backends.causal_lm.metrics import Metrics
from backends.causal_lm.requests.request import FinishReason, RequestError
from backends.causal_lm.runtime.runner import Runner
from backends.causal_lm.scheduling.pacing import message_interval
from backends.causal_lm.scheduling.scheduler import Chunk, Row, Scheduler
from backends.causal_lm.sequences.averaging import averaged
from backends.causal_lm.sequences.sequence import Sequence, next_inputs
from backends.causal_lm.settings import EngineSettings
from backends.causal_lm.speculation import Speculation

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]

_LOGGER = logging.getLogger(__name__)
_MAX_FAILURES = 3


class StepsFailedError(Exception):
    """Too many steps of a kind failed in a row: it is not the requests."""


class Stepper:
    """Runs step after step, in the engine's thread; `changed` guards the scheduler's membership.

    A failed step ends the sequences it concerned; `step` raises StepsFailedError after three in a row.
    """

    def __init__(
        self,
        runner: Runner,
        scheduler: Scheduler[Sequence],
        endings: Endings,
        *,
        recall: Recall,
        settings: EngineSettings,
        changed: threading.Condition,
        metrics: Metrics,
        clock: Callable[[], float],
    ) -> None:
        self._runner, self._scheduler, self._endings = runner, scheduler, endings
        self._recall = recall
        self._changed, self._metrics, self._clock = changed, metrics, clock
        self._cores = len(os.sched_getaffinity(0))
        self._speculation = Speculation(runner, settings, metrics, clock)
        # Apart, for a prompt that works does not excuse the decoding.
        self._failures = {"prefill": 0, "decode": 0, "verify": 0}

    def step(self) -> None:
        """End what was cancelled, read prompts within the budget, decode all that run as one batch."""
        self._end_cancelled()
        self._end_expired()
        self._scheduler.begin_step()
        while chunk := self._next_chunk():
            self._read(chunk)
        if self._scheduler.running:
            self._decode(list(self._scheduler.rows))

    def _end_cancelled(self) -> None:
        with self._changed:
            sequences = list(self._scheduler)
        for sequence in sequences:
            try:
                cancelled = sequence.cancelled or sequence.sink.is_cancelled()
            except Exception as error:
                self._endings.fail_internally(sequence, error)
                continue
            if cancelled:
                self._endings.finish(sequence, "cancelled")

    def _end_expired(self) -> None:
        now = self._clock()
        with self._changed:
            expired = self._scheduler.expired(now)
        for sequence in expired:
            waited, allowed = 1000 * (now - sequence.submitted), sequence.request.timeout
            self._endings.fail(
                sequence,
                "timeout",
                f"timeout: timeout: no turn in {waited:.0f} ms, it may wait {allowed} ms; try again later",
            )

    def _next_chunk(self) -> Chunk[Sequence] | None:
        with self._changed:
            return self._scheduler.next_chunk()

    def _read(self, chunk: Chunk[Sequence]) -> None:
        """Run one prompt chunk; after the last one choose the first token."""
        sequence = chunk.sequence
        if chunk.start == chunk.prompt == 0:
            self._begin(sequence)
        try:
            chunk = self._recall.cut(self._resumed(chunk) if chunk.start == 0 else chunk)
            tokens = sequence.request.prompts[chunk.prompt][chunk.start : chunk.stop]
            logits = self._runner.prefill(chunk.row, tokens, chunk.start)
            self._recall.keep_read(chunk)
        except Exception as error:
            self._failed("prefill", [sequence], error)
            return
        self._failures["prefill"] = 0
        self._metrics.add("prompt_tokens_total", len(tokens))
        if chunk.ends_prompt:
            sequence.endings.append((logits.copy(), self._runner.figures[chunk.row].copy()))
        with self._changed:
            whole = self._scheduler.complete(chunk)
        if whole:
            self._answer(sequence)

    def _resumed(self, chunk: Chunk[Sequence]) -> Chunk[Sequence]:
        """The first chunk of a prompt, behind what is remembered of it, in a row that is fit for it."""
        self._runner.reset(chunk.row)
        length = self._recall.resume(chunk.sequence, chunk.prompt, chunk.row)
        if length == 0:
            return chunk
        chunk.sequence.lengths[chunk.prompt] = length
        rest = self._next_chunk()
        assert rest is not None, "what was let in is read"
        return rest

    def _begin(self, sequence: Sequence) -> None:
        sequence.prefill_started = self._clock()
        self._metrics.observe("request_queue_time_seconds", sequence.prefill_started - sequence.submitted)

    def _answer(self, sequence: Sequence) -> None:
        """Choose the first token: the prompts of a sequence have been read."""
        self._metrics.observe("time_to_first_token_seconds", self._clock() - sequence.submitted)
        self._metrics.add("generation_tokens_total", 1)
        self._speculation.begin(sequence)
        logits, figures = (np.stack(each) for each in zip(*sequence.endings, strict=True))
        sequence.endings.clear()
        self._accept(sequence, logits, figures, list(range(len(logits))))

    def _decode(self, rows: list[Row[Sequence]]) -> None:
        """One token or more for every running sequence, all of which have had one before."""
        if drafts := self._speculation.drafts(rows):
            # The last first: an end moves a row that has had its turn into the one that is free.
            for place in reversed(range(len(rows))):
                self._verify(place, rows[place], drafts[place])
            return
        sequences = list(self._scheduler.running)
        try:
            logits = self._runner.decode(*next_inputs(rows))  # [n, V]
        except Exception as error:
            self._failed("decode", sequences, error)
            return
        self._failures["decode"] = 0
        figures = self._runner.figures.copy()
        self._metrics.add("generation_tokens_total", len(sequences))
        # Their tokens come together, so one interval speaks for all (a call of Triton's metrics is not free).
        self._metrics.observe("inter_token_latency_seconds", self._clock() - sequences[0].last_token_at)
        held: dict[Sequence, list[int]] = {sequence: [] for sequence in sequences}
        for place, row in enumerate(rows):
            row.sequence.lengths[row.prompt] += 1
            held[row.sequence].append(place)
        for sequence, places in held.items():
            self._accept(sequence, logits, figures, places)

    def _verify(self, place: int, row: Row[Sequence], draft: Tokens) -> None:
        """Run a row's last token and its draft at once, and keep what the sequence itself would have said."""
        sequence = row.sequence
        try:
            logits, figures = self._speculation.run(place, row, draft)
        except Exception as error:
            self._failed("verify", [sequence], error)
            return
        self._failures["verify"] = 0
        self._alone(sequence, lambda: self._speculation.accept(place, sequence, draft, logits, figures))

    def _accept(self, sequence: Sequence, logits: Floats, figures: Floats, rows: list[int]) -> None:
        """Choose a sequence's token by its `rows` of logits [n, V] and figures [n, F]."""

        def choose() -> FinishReason:
            own = averaged(logits, rows)
            choice = sequence.sampler.choose(own, int(own.argmax()))
            return sequence.accept(choice, figures[rows], self._clock())

        self._alone(sequence, choose)

    def _alone(self, sequence: Sequence, choose: Callable[[], FinishReason]) -> None:
        """Let a sequence choose, send what is due; its own failure ends it alone."""
        try:
            reason = choose()
            if not reason:
                self._send_due(sequence)
        except RequestError as error:
            self._endings.fail(sequence, "invalid", str(error))
            return
        except Exception as error:
            self._endings.fail_internally(sequence, error)
            return
        if reason:
            self._endings.finish(sequence, reason)

    def _send_due(self, sequence: Sequence) -> None:
        now = self._clock()
        if sequence.has_message(now, message_interval(len(self._scheduler.running), self._cores)):
            sequence.sink.send(sequence.message(now), False)

    def _failed(self, kind: str, sequences: list[Sequence], error: Exception) -> None:
        """The runtime failed: its sequences end; too often in a row, and so does the engine."""
        _LOGGER.error("a step of %d sequences failed", len(sequences), exc_info=error)
        for sequence in sequences:
            self._endings.fail_internally(sequence, error)
        self._failures[kind] += 1
        if self._failures[kind] >= _MAX_FAILURES:
            raise StepsFailedError(f"{self._failures[kind]} {kind} steps failed in a row")

"""The engine: one thread reads prompts, decodes all running sequences as one batch, sends what comes."""

import logging
import threading
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from backends.causal_lm.averaging import averaged
from backends.causal_lm.cancellation import EarlyCancels
from backends.causal_lm.manifest import Manifest
from backends.causal_lm.metrics import Metrics
from backends.causal_lm.pacing import message_interval
from backends.causal_lm.request import FinishReason, GenerationRequest, RequestError, Sink
from backends.causal_lm.runner import Runner
from backends.causal_lm.scheduler import Chunk, OverloadedError, Row, Scheduler
from backends.causal_lm.sequence import Sequence, next_inputs
from backends.causal_lm.settings import EngineSettings

Floats = NDArray[np.float32]

_LOGGER = logging.getLogger(__name__)
_MAX_FAILURES = 3


class Engine:
    """Continuous batching over a Runner.

    `submit` does not wait; every request ends exactly once, through its sink.
    A failed step ends the sequences it concerned; three in a row end the engine (`healthy` is false).
    """

    def __init__(
        self,
        runner: Runner,
        tokenizer: Tokenizer,
        *,
        manifest: Manifest,
        settings: EngineSettings,
        metrics: Metrics,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.manifest = manifest
        self._runner, self._tokenizer = runner, tokenizer
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._scheduler: Scheduler[Sequence] = Scheduler(settings)
        self._early_cancels = EarlyCancels()
        self._failures = {
            "prefill": 0,
            "decode": 0,
        }  # apart: a prompt that works does not excuse the decoding
        self._gauges: tuple[int, int] | None = None
        # Guards the scheduler's membership and the refusal; the thread computes outside of it.
        self._changed = threading.Condition()
        self._refusal = ""
        self._broken = False
        metrics.set("num_slots", settings.slots)
        self._report_load()
        self._thread = threading.Thread(target=self._run, name=f"engine-{manifest.model}", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """False once the engine has given up; a closed engine is not unhealthy."""
        return not self._broken

    def submit(self, request: GenerationRequest, sink: Sink) -> None:
        """Queue a request; refused through `sink.fail` with `overloaded` or `unavailable`."""
        now = self._clock()
        sequence = Sequence(request, sink, manifest=self.manifest, tokenizer=self._tokenizer, now=now)
        refusal = self._enqueue(sequence)
        if refusal:
            self._metrics.add("requests_failed_total", 1)
            sink.fail(refusal.partition(":")[0], refusal)

    def cancel(self, request_id: str) -> bool:
        """Cancel the requests with this id, or one that is still on its way; true if one was under way."""
        if not request_id:
            return False
        with self._changed:
            found = [sequence for sequence in self._scheduler if sequence.request.id == request_id]
            for sequence in found:
                sequence.cancelled = True
            if not found:
                self._early_cancels.cancel(request_id, self._clock())
            self._changed.notify()
        return bool(found)

    def close(self) -> None:
        """Stop: what is under way fails with `unavailable`, the thread is joined; twice is harmless."""
        with self._changed:
            self._refusal = (
                self._refusal or "unavailable: engine: it is being stopped; send the request again"
            )
            self._changed.notify()
        self._thread.join()

    def _enqueue(self, sequence: Sequence) -> str:
        """Let a sequence wait; the refusal, or an empty string."""
        slots, asked = self._settings.slots, len(sequence.lengths)
        if asked > slots:
            allowed = f"{asked} were given, allowed are 1 to {slots}, as many as the engine has slots"
            return str(RequestError("num_permutations", allowed))
        with self._changed:
            if self._refusal:
                return self._refusal
            try:
                self._scheduler.enqueue(sequence)
            except OverloadedError as error:
                return str(error)
            sequence.cancelled = self._early_cancels.take(sequence.request.id, sequence.submitted)
            self._changed.notify()
        return ""

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self._step()
        except BaseException as error:
            _LOGGER.exception("the scheduler died")
            self._break(f"its scheduler died ({error!r})")
        self._fail_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._refusal and not len(self._scheduler):
                self._changed.wait()
            return not self._refusal

    def _step(self) -> None:
        self._end_cancelled()
        with self._changed:
            chunk = self._scheduler.next_chunk()
        if chunk is not None:
            self._read(chunk)
        if self._scheduler.running:
            self._decode(list(self._scheduler.rows))
        self._report_load()

    def _end_cancelled(self) -> None:
        with self._changed:
            sequences = list(self._scheduler)
        for sequence in sequences:
            try:
                cancelled = sequence.cancelled or sequence.sink.is_cancelled()
            except Exception as error:
                self._fail(sequence, "internal", _internal(error))
                continue
            if cancelled:
                self._finish(sequence, "cancelled")

    def _read(self, chunk: Chunk[Sequence]) -> None:
        """Run one prompt chunk; after the last one choose the first token."""
        sequence = chunk.sequence
        if chunk.start == chunk.prompt == 0:
            self._begin(sequence)
        tokens = sequence.request.prompts[chunk.prompt][chunk.start : chunk.stop]
        try:
            if chunk.start == 0:
                self._runner.reset(chunk.row)
            logits = self._runner.prefill(chunk.row, tokens, chunk.start)
        except Exception as error:
            self._step_failed("prefill", [sequence], error)
            return
        self._failures["prefill"] = 0
        self._metrics.add("prompt_tokens_total", len(tokens))
        if chunk.ends_prompt:
            sequence.endings.append((logits.copy(), self._runner.figures[chunk.row].copy()))
        with self._changed:
            whole = self._scheduler.complete(chunk)
        if whole:
            self._metrics.observe("time_to_first_token_seconds", self._clock() - sequence.submitted)
            self._metrics.add("generation_tokens_total", 1)
            every_logits, every_figures = (np.stack(each) for each in zip(*sequence.endings, strict=True))
            sequence.endings.clear()
            self._accept(sequence, every_logits, every_figures, list(range(len(every_logits))))

    def _begin(self, sequence: Sequence) -> None:
        sequence.prefill_started = self._clock()
        self._metrics.observe("request_queue_time_seconds", sequence.prefill_started - sequence.submitted)

    def _decode(self, rows: list[Row[Sequence]]) -> None:
        """One token for every running sequence, all of which have had one before."""
        sequences = list(self._scheduler.running)
        try:
            logits = self._runner.decode(*next_inputs(rows))  # [n, V]
        except Exception as error:
            self._step_failed("decode", sequences, error)
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

    def _accept(self, sequence: Sequence, logits: Floats, figures: Floats, rows: list[int]) -> None:
        """Choose a sequence's token by its `rows` of logits [n, V] and figures [n, F], send what is due.

        Its own failure ends it alone.
        """
        try:
            own = averaged(logits, rows)
            choice = sequence.sampler.choose(own, int(own.argmax()))
            reason = sequence.accept(choice, figures[rows], self._clock())
            if not reason:
                self._send_due(sequence)
        except Exception as error:
            self._fail(sequence, "internal", _internal(error))
            return
        if reason:
            self._finish(sequence, reason)

    def _send_due(self, sequence: Sequence) -> None:
        now = self._clock()
        if sequence.has_message(now, message_interval(len(self._scheduler.running))):
            sequence.sink.send(sequence.message(now), False)

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        """End a sequence with its last message; its row is free before that leaves."""
        now = self._clock()
        name = "requests_cancelled_total" if reason == "cancelled" else "requests_finished_total"
        self._metrics.add(name, 1)
        self._metrics.observe("e2e_request_latency_seconds", now - sequence.submitted)
        try:
            self._release(sequence)
        finally:
            self._end(sequence, lambda: sequence.sink.send(sequence.last_message(reason, now), True))

    def _fail(self, sequence: Sequence, code: str, message: str) -> None:
        """End a sequence with an error."""
        _LOGGER.error("request %r: %s", sequence.request.id, message)
        self._metrics.add("requests_failed_total", 1)
        try:
            self._release(sequence)
        finally:
            self._end(sequence, lambda: sequence.sink.fail(code, message))

    def _end(self, sequence: Sequence, deliver: Callable[[], None]) -> None:
        try:
            deliver()
        except Exception:
            _LOGGER.exception("the end of request %r was not taken", sequence.request.id)

    def _release(self, sequence: Sequence) -> None:
        """Take a sequence out of the rows, and keep them dense."""
        with self._changed:
            moves = self._scheduler.remove(sequence)
            self._early_cancels.end(sequence.request.id, self._clock())
        for move in moves:
            self._runner.move(move.source, move.target, move.length)

    def _step_failed(self, kind: str, sequences: list[Sequence], error: Exception) -> None:
        """The runtime failed: its sequences end; too often in a row, and so does the engine."""
        _LOGGER.error("a step of %d sequences failed", len(sequences), exc_info=error)
        for sequence in sequences:
            self._fail(sequence, "internal", _internal(error))
        self._failures[kind] += 1
        if self._failures[kind] >= _MAX_FAILURES:
            self._break(f"{self._failures[kind]} {kind} steps failed in a row")

    def _break(self, why: str) -> None:
        with self._changed:
            self._broken = True
            self._refusal = f"unavailable: engine: {why}; reload the model"

    def _fail_all(self) -> None:
        with self._changed:
            sequences = list(self._scheduler)
        for sequence in sequences:
            self._fail(sequence, "unavailable", self._refusal)
        self._report_load()

    def _report_load(self) -> None:
        waiting = len(self._scheduler.waiting)
        gauges = (len(self._scheduler) - waiting, waiting)
        if gauges != self._gauges:
            self._gauges = gauges
            self._metrics.set("num_requests_running", gauges[0])
            self._metrics.set("num_requests_waiting", gauges[1])


def _internal(error: Exception) -> str:
    return f"internal: engine: {error or type(error).__name__}; send the request again"

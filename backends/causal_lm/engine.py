"""The engine: what is let in, and one thread that runs step after step until it is closed or breaks."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from tokenizers import Tokenizer

from backends.causal_lm.caching.recall import Recall
from backends.causal_lm.caching.sessions import Sessions
from backends.causal_lm.ending import Endings
from backends.causal_lm.guiding.guidance import Guidance, Matcher
from backends.causal_lm.manifest import Manifest
from backends.causal_lm.metrics import Metrics
from backends.causal_lm.requests.request import GenerationRequest, RequestError, Sink
from backends.causal_lm.runtime.runner import Runner
from backends.causal_lm.scheduling.cancellation import EarlyCancels
from backends.causal_lm.scheduling.scheduler import OverloadedError, Scheduler
from backends.causal_lm.sequences.sequence import Sequence
from backends.causal_lm.settings import EngineSettings
from backends.causal_lm.step import Stepper, StepsFailedError

_LOGGER = logging.getLogger(__name__)


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
        sessions: Sessions | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.manifest = manifest
        self._tokenizer, self._guidance = tokenizer, Guidance(tokenizer, manifest)
        # Guides are compiled apart, one after another: neither a step nor an unguided request waits for one.
        self._compiler = ThreadPoolExecutor(1, thread_name_prefix="guides")
        self._num_compiling = 0
        self._settings, self._metrics, self._clock = settings, metrics, clock
        self._scheduler: Scheduler[Sequence] = Scheduler(settings)
        self._early_cancels = EarlyCancels()
        # Guards the scheduler's membership and the refusal; the thread computes outside of it.
        self._changed = threading.Condition()
        self._recall = Recall(
            runner,
            manifest,
            cache_bytes=settings.prefix_cache_bytes,
            sessions=sessions or Sessions(settings.session_memory_bytes, None, metrics),
            metrics=metrics,
        )
        self._endings = Endings(
            runner,
            self._scheduler,
            recall=self._recall,
            early_cancels=self._early_cancels,
            changed=self._changed,
            metrics=metrics,
            clock=clock,
        )
        self._stepper = Stepper(
            runner,
            self._scheduler,
            self._endings,
            recall=self._recall,
            settings=settings,
            changed=self._changed,
            metrics=metrics,
            clock=clock,
        )
        self._refusal = ""
        self._broken = False
        self._gauges: tuple[int, int] | None = None
        metrics.set("num_slots", settings.slots)
        self._report_load()
        self._thread = threading.Thread(target=self._run, name=f"engine-{manifest.model}", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """False once the engine has given up; a closed engine is not unhealthy."""
        return not self._broken

    def submit(self, request: GenerationRequest, sink: Sink) -> None:
        """Queue a request; refused through `sink.fail` with `invalid`, `overloaded` or `unavailable`."""
        try:
            matcher = self._guidance.known(request.guide) if request.guide else None
        except RequestError as error:
            self._refuse(sink, str(error))
            return
        if request.guide is None or matcher is not None:
            self._admit(request, sink, self._clock(), matcher)
        elif refusal := self._compile_first(request, sink):
            self._refuse(sink, refusal)

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
        self._compiler.shutdown()
        self._guidance.close()
        self._thread.join()
        self._recall.close()

    def _compile_first(self, request: GenerationRequest, sink: Sink) -> str:
        """Have a guide compiled and the request admitted then; the refusal, or an empty string."""
        with self._changed:
            if self._refusal:
                return self._refusal
            if self._num_compiling >= self._settings.queue_size:
                return str(OverloadedError(self._num_compiling))
            self._num_compiling += 1
            self._compiler.submit(self._admit_guided, request, sink, self._clock())
        return ""

    def _admit_guided(self, request: GenerationRequest, sink: Sink, now: float) -> None:
        assert request.guide is not None, "the others are admitted at once"
        try:
            matcher = None if self._refusal else self._guidance.matcher(request.guide)
            self._admit(request, sink, now, matcher)
        except RequestError as error:
            self._refuse(sink, str(error))
        except Exception as error:
            _LOGGER.exception("a guide could not be compiled")
            self._refuse(sink, f"internal: engine: {error!r}")
        finally:
            with self._changed:
                self._num_compiling -= 1

    def _admit(self, request: GenerationRequest, sink: Sink, now: float, matcher: Matcher | None) -> None:
        sequence = Sequence(
            request, sink, manifest=self.manifest, tokenizer=self._tokenizer, now=now, matcher=matcher
        )
        self._recall.prepare(sequence, lambda: self._let_in(sequence))

    def _let_in(self, sequence: Sequence) -> None:
        if refusal := self._enqueue(sequence):
            self._refuse(sequence.sink, refusal)

    def _refuse(self, sink: Sink, message: str) -> None:
        self._metrics.add("requests_failed_total", 1)
        sink.fail(message.partition(":")[0], message)

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
                self._stepper.step()
                self._report_load()
        except StepsFailedError as error:
            self._break(str(error))
        except BaseException as error:
            _LOGGER.exception("the scheduler died")
            self._break(f"its scheduler died ({error!r})")
        self._fail_all()

    def _wait_for_work(self) -> bool:
        with self._changed:
            while not self._refusal and not len(self._scheduler):
                self._changed.wait()
            return not self._refusal

    def _break(self, why: str) -> None:
        with self._changed:
            self._broken = True
            self._refusal = f"unavailable: engine: {why}; reload the model"

    def _fail_all(self) -> None:
        with self._changed:
            sequences = list(self._scheduler)
        for sequence in sequences:
            try:
                self._endings.fail(sequence, "unavailable", self._refusal)
            except Exception:
                _LOGGER.exception("the rows of request %r could not be freed", sequence.request.id)
        self._report_load()

    def _report_load(self) -> None:
        waiting = len(self._scheduler.waiting)
        gauges = (len(self._scheduler) - waiting, waiting)
        if gauges != self._gauges:
            self._gauges = gauges
            self._metrics.set("num_requests_running", gauges[0])
            self._metrics.set("num_requests_waiting", gauges[1])

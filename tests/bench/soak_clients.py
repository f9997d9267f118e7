"""The load of `make soak`: clients of every kind, and what they have seen.

They ask for texts of random lengths and some for texts in a form, cancel some, go on with conversations
under a session id, wait no longer than they may, and belong to different users.
"""

import random
import threading
import time
from collections import Counter
from dataclasses import dataclass, field

from backends.causal_lm.engine import Engine
from backends.causal_lm.requests.request import GenerationRequest, Output

LONGEST_PROMPT, LONGEST_ANSWER = 200, 48  # tokens
GUIDE = {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "([a-z]+ ){100}"}


@dataclass
class Tally:
    """What the clients have seen; `unseen` counts tokens that end an answer and are not shown."""

    ends: Counter[str] = field(default_factory=Counter)
    tokens: int = 0
    unseen: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, end: str, output: Output | None) -> None:
        """Note the end of a request."""
        with self.lock:
            self.ends[end] += 1
            if output is not None:
                self.tokens += output.num_output_tokens
                self.unseen += output.finish_reason == "stop" and not output.stop_reason


class Client(threading.Thread):
    """Asks one thing after another until the time is up."""

    def __init__(self, number: int, engine: Engine, tally: Tally, until: float) -> None:
        super().__init__(name=f"client-{number}")
        self._engine, self._tally, self._until = engine, tally, until
        self._random = random.Random(number)
        self._number, self._asked = number, 0
        self._talk: list[int] = []

    def run(self) -> None:
        while time.monotonic() < self._until:
            self._ask()

    def _ask(self) -> None:
        rng, self._asked = self._random, self._asked + 1
        request_id = f"{self._number}-{self._asked}"
        sink = Sink(
            self._engine, request_id, cancels_after=rng.choice([None, None, None, rng.randint(0, 20)])
        )
        request = GenerationRequest.from_values(request_id, self._values(), self._engine.manifest)
        self._engine.submit(request, sink)
        sink.ended.wait()
        self._tally.add(sink.end, sink.last)
        if request.session_id and sink.last is not None:
            self._talk = [*request.prompts[0].tolist(), *sink.tokens]

    def _values(self) -> dict[str, object]:
        rng = self._random
        goes_on = rng.random() < 0.4 and len(self._talk) < LONGEST_PROMPT - 40
        vocab_size = self._engine.manifest.vocab_size
        said = [rng.randrange(vocab_size // 2, vocab_size) for _ in range(rng.randint(1, 40))]
        fresh = said * rng.choice([1, 1, 2, 4])
        values: dict[str, object] = {
            "input_ids": [*self._talk, *said] if goes_on else fresh,
            "max_tokens": rng.randint(1, LONGEST_ANSWER),
            "temperature": rng.choice([0.0, 0.8]),
            "seed": rng.randrange(2**32),
            "stream": rng.random() < 0.7,
            "user": f"user {self._number % 5}",
            "priority": rng.choice([0, 0, 0, -1, 1]),
            "timeout": rng.choice([0, 0, 0, 2000]),
        }
        if rng.random() < 0.1:
            values |= GUIDE
        if not goes_on:
            self._talk = []
        return values | ({"session_id": f"talk {self._number}"} if rng.random() < 0.6 else {})


class Sink:
    """One request's end; cancels it by its id after so many tokens."""

    def __init__(self, engine: Engine, request_id: str, cancels_after: int | None) -> None:
        self._engine, self._request_id, self._cancels_after = engine, request_id, cancels_after
        self.tokens: list[int] = []
        self.last: Output | None = None
        self.end = ""
        self.ended = threading.Event()
        if cancels_after == 0:
            engine.cancel(request_id)

    def send(self, output: Output, final: bool) -> None:
        self.tokens += output.token_ids
        if final:
            self.last = output
            self._finish(output.finish_reason)
        elif self._cancels_after is not None and output.num_output_tokens >= self._cancels_after:
            self._engine.cancel(self._request_id)

    def fail(self, code: str, message: str) -> None:
        self._finish(code)

    def is_cancelled(self) -> bool:
        return False

    def _finish(self, end: str) -> None:
        assert not self.end, f"{self._request_id} has ended twice: {self.end}, {end}"
        self.end = end
        self.ended.set()


def fill_rows(engine: Engine, slots: int, tally: Tally) -> None:
    """Use every slot at once, as far as any client will: their memory is real then, and none may be lost."""
    longest = LONGEST_PROMPT + LONGEST_ANSWER
    length = min(longest, engine.manifest.max_length) - LONGEST_ANSWER
    ids = list(range(engine.manifest.vocab_size // 2, engine.manifest.vocab_size))[:length]
    values = {"input_ids": ids, "max_tokens": LONGEST_ANSWER, "min_tokens": LONGEST_ANSWER}
    sinks = [Sink(engine, f"row {row}", None) for row in range(slots)]
    for row, sink in enumerate(sinks):
        engine.submit(GenerationRequest.from_values(f"row {row}", values, engine.manifest), sink)
    for sink in sinks:
        if not sink.ended.wait(300) or sink.end != "length":
            raise RuntimeError(f"a slot is lost: {sink.end or 'its request never ended'}")
        tally.add(sink.end, sink.last)

"""Speculative decoding: when drafts are made of running sequences, and what of them stays."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.metrics import Metrics
from backends.causal_lm.requests.request import FinishReason
from backends.causal_lm.runtime.runner import Runner
from backends.causal_lm.scheduling.scheduler import Row
from backends.causal_lm.sequences.sequence import Sequence
from backends.causal_lm.settings import EngineSettings

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class Speculation:
    """Drafts for few streams, looked up in their own text; each sequence's sampler decides what is right."""

    def __init__(
        self, runner: Runner, settings: EngineSettings, metrics: Metrics, clock: Callable[[], float]
    ) -> None:
        self._runner, self._metrics, self._clock = runner, metrics, clock
        self._most_streams = settings.speculative_streams
        self._longest = max(0, min(settings.speculative_tokens, runner.most_verified - 1))

    def begin(self, sequence: Sequence) -> None:
        """A sequence is about to say its first token."""
        if self._longest:
            sequence.prepare_drafts(self._longest)

    def drafts(self, rows: list[Row[Sequence]]) -> list[Tokens]:
        """What may come next in each row, while few run; empty when no row has an idea."""
        if len(rows) > self._most_streams:
            return []
        drafts = [row.sequence.draft() for row in rows]
        return drafts if any(draft.size for draft in drafts) else []

    def run(self, place: int, row: Row[Sequence], draft: Tokens) -> tuple[Floats, Floats]:
        """Run a row's last token and its draft at once: logits [1 + k, V], figures [1 + k, F]."""
        tokens = np.concatenate([[row.sequence.last_token], draft])
        return self._runner.verify(place, tokens, row.length)

    def accept(
        self, place: int, sequence: Sequence, draft: Tokens, logits: Floats, figures: Floats
    ) -> FinishReason:
        """Let a sequence choose as far as its draft is right, and once more; its row keeps what it chose."""
        since = sequence.last_token_at
        for right, token in enumerate([*draft.tolist(), None]):
            choice = sequence.sampler.choose(logits[right], int(logits[right].argmax()))
            reason = sequence.accept(choice, figures[right : right + 1], self._clock())
            if reason or choice.token != token:
                break
        self._runner.keep(place, right + 1)
        sequence.lengths[0] += right + 1
        self._metrics.add("generation_tokens_total", right + 1)
        self._metrics.observe("inter_token_latency_seconds", (self._clock() - since) / (right + 1))
        self._judge(sequence, draft.size, right)
        return reason

    def _judge(self, sequence: Sequence, drafted: int, accepted: int) -> None:
        if drafted and sequence.drafter is not None:
            sequence.drafter.judge(drafted, accepted)
            self._metrics.add("spec_decode_num_drafts_total", 1)
            self._metrics.add("spec_decode_num_draft_tokens_total", drafted)
            self._metrics.add("spec_decode_num_accepted_tokens_total", accepted)

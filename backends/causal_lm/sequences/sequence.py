"""One request under way: its place in the rows, its text so far, what its next message will carry."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from backends.causal_lm.caching.prefixes import Prefixes
from backends.causal_lm.figures import FigureLog
from backends.causal_lm.guiding.guidance import Matcher
from backends.causal_lm.manifest import Manifest
from backends.causal_lm.requests.request import FinishReason, GenerationRequest, Output, Sink, Timings
from backends.causal_lm.runtime.state import bytes_of_states
from backends.causal_lm.scheduling.scheduler import Row
from backends.causal_lm.sequences.bad_words import BadWords
from backends.causal_lm.sequences.detokenize import Detokenizer, StopStrings
from backends.causal_lm.sequences.prompt_lookup import Drafter
from backends.causal_lm.sequences.sampling import Choice, Sampler

Floats = NDArray[np.float32]
Tokens = NDArray[np.int64]


class Sequence:
    """A request with everything that its generation needs; times are seconds of the engine's clock.

    It has a row for each of its prompts; `lengths` counts the tokens that these hold.
    The engine's thread alone touches it, but for `cancelled`.
    """

    def __init__(
        self,
        request: GenerationRequest,
        sink: Sink,
        *,
        manifest: Manifest,
        tokenizer: Tokenizer,
        now: float,
        matcher: Matcher | None = None,
    ) -> None:
        self.request, self.sink = request, sink
        self.prompt_lengths = tuple(len(prompt) for prompt in request.prompts)
        self.lengths = [0] * len(request.prompts)
        self.priority, self.user = request.priority, request.user
        self.deadline = now + request.timeout / 1000 if request.timeout else None
        self.endings: list[tuple[Floats, Floats]] = []  # logits [V] and figures [F] after each prompt
        self.prefixes = tuple(Prefixes(prompt) for prompt in request.prompts)
        self.parked_as: str | None = None  # the state to go on from
        self.num_cached_tokens = 0  # of the prompts, that were not read again
        self.generated: list[int] = []
        self.last_token = -1
        self.cancelled = False
        self.submitted = now
        self.prefill_started: float | None = None
        self.first_token: float | None = None
        self.last_token_at = now
        self.sent_at: float | None = None
        bad_words = BadWords(request.bad_words, tokenizer) if request.bad_words else None
        self.sampler = Sampler(request, manifest.special_tokens.eos, bad_words, matcher)
        self._eos = manifest.special_tokens.eos
        self._limit = min(request.max_tokens, manifest.max_length - max(self.prompt_lengths))
        self.state_bytes = sum(
            bytes_of_states(manifest.states, length + self._limit) for length in self.prompt_lengths
        )
        self.drafter: Drafter | None = None
        self._detokenizer = Detokenizer(tokenizer)
        self._stops = StopStrings(request.stop_words)
        self._figures = FigureLog(manifest.extra_outputs)
        self._num_output_tokens = 0
        self._cum_log_prob = 0.0
        self._stop_reason = ""
        self._text = "" if request.exclude_input else _echo(request, tokenizer)
        self._undecoded: list[int] = []  # tokens that have not become text: nobody has needed it yet
        self._token_ids: list[int] = []
        self._log_probs: list[float] = []
        self._top_log_probs: list[Mapping[int, float]] = []

    @property
    def num_output_tokens(self) -> int:
        return self._num_output_tokens

    def accept(self, choice: Choice, figures: Floats, now: float) -> FinishReason:
        """Take the next token and its rows' figures [k, F]; the reason to finish, or an empty string.

        End-of-sequence is not shown.
        """
        self.first_token = now if self.first_token is None else self.first_token
        self.last_token, self.last_token_at = choice.token, now
        self.generated.append(choice.token)
        self._figures.add(figures, shown=choice.token not in self._eos)
        if choice.token in self._eos:
            return "stop"
        self._record(choice)
        if (self._stops and self._detokenize()) or choice.ends:
            return "stop"
        return "length" if self._num_output_tokens >= self._limit else ""

    def prepare_drafts(self, longest: int) -> None:
        """Look up drafts from now on; not of several prompts, whose rows are decoded together."""
        if len(self.request.prompts) == 1:
            (prompt,) = self.request.prompts
            self.drafter = Drafter(prompt, len(prompt) + self._limit, longest)

    def draft(self) -> Tokens:
        """What may come next, never more than may still be said, less one; often nothing."""
        most = self._limit - self._num_output_tokens - 1
        return np.empty(0, np.int64) if self.drafter is None else self.drafter.draft(most)

    def has_message(self, now: float, interval: float) -> bool:
        """Whether a streamed message is due: the first text at once, then one per `interval` seconds."""
        if not self.request.stream or (self.sent_at is not None and now - self.sent_at < interval):
            return False
        self._detokenize()
        return bool(self._text)

    def message(self, now: float) -> Output:
        """What has come since the last message."""
        self.sent_at = now
        return self._take("", None)

    def last_message(self, reason: FinishReason, now: float) -> Output:
        """The rest, with reason and timings; held-back text is shown unless a stop string ended it."""
        if not self._stop_reason and not self._detokenize() and not self._show(self._detokenizer.flush()):
            self._text += self._stops.flush()
        reason = "stop" if self._stop_reason else reason
        return self._take(reason, self._timings(now))

    def _record(self, choice: Choice) -> None:
        self._num_output_tokens += 1
        self._token_ids.append(choice.token)
        self._undecoded.append(choice.token)
        if self.drafter is not None:
            self.drafter.extend(choice.token)
        if self.request.return_log_probs:
            self._cum_log_prob += choice.log_prob
            self._log_probs.append(choice.log_prob)
        if self.request.num_log_probs:
            self._top_log_probs.append(choice.alternatives)

    def _detokenize(self) -> bool:
        """Make text of the tokens so far; true when a stop string is complete."""
        tokens, self._undecoded = self._undecoded, []
        return self._show(self._detokenizer.push(*tokens)) if tokens else False

    def _show(self, piece: str) -> bool:
        """Add a piece of text as far as no stop string may begin in it; true when one is complete."""
        text, self._stop_reason = self._stops.push(piece)
        self._text += text
        return bool(self._stop_reason)

    def _take(self, reason: FinishReason, timings: Timings | None) -> Output:
        output = Output(
            text=self._text,
            token_ids=tuple(self._token_ids),
            num_input_tokens=sum(self.prompt_lengths),
            num_output_tokens=self._num_output_tokens,
            num_cached_tokens=self.num_cached_tokens,
            finish_reason=reason,
            stop_reason=self._stop_reason,
            cum_log_prob=self._cum_log_prob,
            log_probs=tuple(self._log_probs),
            top_log_probs=tuple(self._top_log_probs),
            timings=timings,
            uncertainty=self._figures.take(is_last=timings is not None),
            cot_budget=self._figures.budget,
        )
        self._text = ""
        self._token_ids, self._log_probs, self._top_log_probs = [], [], []
        return output

    def _timings(self, now: float) -> Timings:
        started = now if self.prefill_started is None else self.prefill_started
        first = now if self.first_token is None else self.first_token
        spans = (started - self.submitted, first - started, now - first)
        return Timings(*(round(seconds * 1e9) for seconds in spans))


def _echo(request: GenerationRequest, tokenizer: Tokenizer) -> str:
    if request.prompt is not None:
        return request.prompt
    return str(tokenizer.decode(request.prompts[0].tolist(), skip_special_tokens=True))


def next_inputs(rows: list[Row[Sequence]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tokens [n] and positions [n] of the next decode step."""
    tokens = np.fromiter((row.sequence.last_token for row in rows), np.int64, len(rows))
    positions = np.fromiter((row.length for row in rows), np.int64, len(rows))
    return tokens, positions

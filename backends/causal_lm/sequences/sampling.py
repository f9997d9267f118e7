"""From logits to a token, one row at a time, so that a crowd cannot change what a request draws."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.requests.request import GenerationRequest
from backends.causal_lm.sequences.adjustments import Adjustments
from backends.causal_lm.sequences.bad_words import BadWords
from backends.causal_lm.sequences.drawing import (
    largest,
    place,
    surely_kept,
    truncated,
    truncates,
    weights_of,
)

Floats = NDArray[np.float32]
_COLDEST = 1e-5  # below this temperature float32 cannot tell a draw from the largest logit
_ASKED = 4  # tokens that a constraint is asked about, one by one; the whole vocabulary costs more than these
_FAINTEST = 1e-20  # of what is left of weights up to 1; below, float32 begins to lose digits


class NonFiniteLogitsError(Exception):
    """The graph returned NaN or infinity where a token should be chosen."""


@dataclass(frozen=True, slots=True)
class Choice:
    """A token, its log-probability in the raw distribution, and the likeliest alternatives.

    `ends` says that nothing may follow it.
    """

    token: int
    log_prob: float = 0.0
    alternatives: Mapping[int, float] = field(default_factory=dict)
    ends: bool = False


class Constraint(Protocol):
    """Bars tokens by what has been said; `ends` once nothing more may be said."""

    ends: bool

    def forced(self) -> int | None:
        """The token that must come next, where only one may and it costs little to know."""
        ...

    def allows(self, token: int) -> bool:
        """Whether `token` may come next: exactly when `restrict` would leave it."""
        ...

    def restrict(self, row: Floats) -> None:
        """Set the logits [V] of what must not come next to minus infinity."""
        ...

    def advance(self, token: int) -> None:
        """Take the chosen token."""
        ...


class Sampler:
    """Draws one request's tokens.

    Order: penalties and bias, barred tokens, constraint, temperature, top-k, top-p, min-p. The request's own
    Philox stream, keyed by its seed, gives one uniform number per draw. How many draws a token takes depends
    on its logits and the constraint alone, so the same seed draws the same text in any company.
    """

    def __init__(
        self,
        request: GenerationRequest,
        eos: tuple[int, ...],
        bad_words: BadWords | None = None,
        constraint: Constraint | None = None,
    ) -> None:
        self._parameters = request.sampling
        self._truncates = truncates(request.sampling)
        self._adjustments = Adjustments(request)
        self._min_tokens, self._eos = request.min_tokens, list(eos)
        self._bad_words, self._constraint = bad_words, constraint
        self._log_probs = request.return_log_probs or request.num_log_probs > 0
        self._num_alternatives = request.num_log_probs
        self._generator = np.random.Generator(np.random.Philox(key=request.sampling.seed))
        self._generated = 0

    def choose(self, logits: Floats, greedy: int) -> Choice:
        """Choose from raw `logits` [V], whose argmax is `greedy`; raises NonFiniteLogitsError."""
        if not math.isfinite(logits[greedy]):
            raise NonFiniteLogitsError(f"the graph's largest logit is {logits[greedy]}")
        token = self._chosen(logits, greedy)
        self._advance(token)
        return self._described(token, logits, greedy)

    def _chosen(self, logits: Floats, greedy: int) -> int:
        barred = self._barred()
        forced = None if self._constraint is None else self._constraint.forced()
        if forced is not None and forced not in barred:
            return forced
        if self._parameters.temperature < _COLDEST:
            return self._likeliest(logits, greedy, barred)
        changed = bool(barred or self._adjustments)
        row = self._adjusted(logits, barred) if changed else logits
        peak = row.max() if changed else logits[greedy]
        return self._draw(row, peak) if self._constraint is None else self._draw_allowed(row, peak)

    def _advance(self, token: int) -> None:
        self._generated += 1
        self._adjustments.advance(token)
        if self._bad_words is not None:
            self._bad_words.advance(token)
        if self._constraint is not None:
            self._constraint.advance(token)

    def _barred(self) -> list[int]:
        early = self._eos if self._generated < self._min_tokens else []
        return early if self._bad_words is None else [*early, *self._bad_words.barred()]

    def _adjusted(self, logits: Floats, barred: list[int]) -> Floats:
        """A copy of logits [V] with penalties and bias, in which `barred` tokens are."""
        row = logits.copy()
        if self._adjustments:
            self._adjustments.apply(row)
        row[barred] = -np.inf
        return row

    def _likeliest(self, logits: Floats, greedy: int, barred: list[int]) -> int:
        """The first of the largest of the adjusted logits [V] that may come next."""
        for token in islice(self._ranked(logits, greedy, barred), _ASKED):
            if self._constraint is None or self._constraint.allows(token):
                return token
        row = self._adjusted(logits, barred)
        if self._constraint is not None:
            self._constraint.restrict(row)
        return int(row.argmax())

    def _ranked(self, logits: Floats, greedy: int, barred: list[int]) -> Iterator[int]:
        """Tokens by adjusted logits [V], largest first; where that is `greedy`, no row is searched for it."""
        is_first = greedy not in barred and self._adjustments.spare(logits, greedy)
        if is_first:
            yield greedy
        row = self._adjusted(logits, barred)
        if is_first:
            row[greedy] = -np.inf
        while row[token := int(row.argmax())] > -np.inf:
            yield token
            row[token] = -np.inf

    def _draw(self, row: Floats, peak: np.float32, found: int | None = None) -> int:
        """Draw from logits [V], the largest of which is `peak`, unless what was `found` before is kept."""
        ids, weights = truncated(row, peak, self._parameters)
        if found is not None and (ids is None or found in ids):
            return found
        drawn = place(weights, self._generator.random())
        return drawn if ids is None else int(ids[drawn])

    def _draw_allowed(self, row: Floats, peak: np.float32) -> int:
        """Draw from what the constraint leaves of logits [V], mostly without knowing all of it.

        What is drawn from everything, and again without what was refused, is drawn from the allowed: the odds
        between any two of these are the same in each draw. So a token that would also be kept of the allowed
        may be taken; where that isn't sure, or too many are refused, the constraint tells all that it allows.
        """
        assert self._constraint is not None, "without one, all is allowed"
        weights, found = weights_of(row, peak, self._parameters.temperature), None
        for _ in range(_ASKED):
            token = place(weights, self._generator.random())
            if self._constraint.allows(token):
                if not self._truncates or surely_kept(token, weights, self._parameters):
                    return token
                found = token
                break
            weights[token] = 0
            if weights.max() < _FAINTEST:
                break
        allowed = row.copy()
        self._constraint.restrict(allowed)
        return self._draw(allowed, allowed.max(), found)

    def _described(self, token: int, logits: Floats, greedy: int) -> Choice:
        ends = self._constraint is not None and self._constraint.ends
        if not self._log_probs:
            return Choice(token, ends=ends)
        weights = weights_of(logits, logits[greedy], 1.0)
        total = float(logits[greedy]) + math.log(weights.sum())
        likeliest = largest(logits, self._num_alternatives) if self._num_alternatives else ()
        alternatives = {int(i): float(logits[i]) - total for i in likeliest}
        return Choice(token, float(logits[token]) - total, alternatives, ends)

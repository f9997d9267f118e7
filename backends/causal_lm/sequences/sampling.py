"""From logits to a token, one row at a time, so that a crowd cannot change what a request draws."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.requests.request import GenerationRequest

Floats = NDArray[np.float32]
Indices = NDArray[np.int64]
_BLOCK = 64
_COLDEST = 1e-5  # below this temperature float32 cannot tell a draw from the largest logit
_ASKED = 4  # of the likeliest tokens, one by one; the whole vocabulary costs more than these


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

    Order: penalties and bias, constraints, temperature, top-k, top-p, min-p. The request's own Philox stream,
    keyed by its seed, gives one uniform number per drawn token, so the same seed draws the same text in any
    company.
    """

    def __init__(
        self,
        request: GenerationRequest,
        vocab_size: int,
        eos: tuple[int, ...],
        constraints: Sequence[Constraint] = (),
    ) -> None:
        self._constraints = constraints
        self._parameters = request.sampling
        self._min_tokens, self._eos = request.min_tokens, list(eos)
        self._log_probs = request.return_log_probs or request.num_log_probs > 0
        self._num_alternatives = request.num_log_probs
        self._generator = np.random.Generator(np.random.Philox(key=request.sampling.seed))
        self._bias_ids = np.fromiter(request.sampling.logit_bias.keys(), np.int64)
        self._bias = np.fromiter(request.sampling.logit_bias.values(), np.float32)
        self._generated = 0
        self._counts: NDArray[np.int32] | None = None
        if _penalises(request):
            self._counts = np.zeros(vocab_size, np.int32)
            self._seen = np.zeros(vocab_size, np.bool_)
            self._seen[np.concatenate(request.prompts)] = True

    def choose(self, logits: Floats, greedy: int) -> Choice:
        """Choose from raw `logits` [V], whose argmax is `greedy`; raises NonFiniteLogitsError."""
        if not np.isfinite(logits[greedy]):
            raise NonFiniteLogitsError(f"the graph's largest logit is {logits[greedy]}")
        row = self._adjusted(logits)
        if self._parameters.temperature < _COLDEST:
            token = greedy if row is logits else self._likeliest(row)
        else:
            self._restrict(row)
            token = self._draw(row, logits[greedy] if row is logits else row.max())
        self._advance(token)
        return self._described(token, logits)

    def _advance(self, token: int) -> None:
        self._generated += 1
        if self._counts is not None:
            self._counts[token] += 1
            self._seen[token] = True
        for constraint in self._constraints:
            constraint.advance(token)

    def _adjusted(self, logits: Floats) -> Floats:
        """Penalties, bias, the bar on end-of-sequence; a copy when these or constraints change it."""
        barred = self._generated < self._min_tokens
        if self._counts is None and not barred and self._bias.size == 0 and not self._constraints:
            return logits
        row = logits.copy()
        if self._counts is not None:
            self._penalise(row, self._counts)
        row[self._bias_ids] += self._bias
        if barred:
            row[self._eos] = -np.inf
        return row

    def _likeliest(self, row: Floats) -> int:
        """The first of the largest of logits [V] that all constraints allow; `row` is used up."""
        for _ in range(_ASKED):
            token = int(row.argmax())
            if row[token] == -np.inf:
                break
            if all(constraint.allows(token) for constraint in self._constraints):
                return token
            row[token] = -np.inf
        self._restrict(row)
        return int(row.argmax())

    def _restrict(self, row: Floats) -> None:
        for constraint in self._constraints:
            constraint.restrict(row)

    def _penalise(self, row: Floats, counts: NDArray[np.int32]) -> None:
        """Repetition (arXiv:1909.05858) over prompt and output; presence, frequency (OpenAI) over output."""
        parameters = self._parameters
        seen = np.flatnonzero(self._seen)
        values, penalty = row[seen], np.float32(parameters.repetition_penalty)
        row[seen] = np.where(values > 0, values / penalty, values * penalty)
        used = np.flatnonzero(counts)
        row[used] -= np.float32(parameters.presence_penalty)
        row[used] -= np.float32(parameters.frequency_penalty) * counts[used].astype(np.float32)

    def _draw(self, row: Floats, peak: np.float32) -> int:
        parameters = self._parameters
        ids = None
        if 0 < parameters.top_k < row.size:
            ids = np.sort(largest(row, parameters.top_k))
            row = row[ids]
        weights = np.exp((row - peak) / np.float32(parameters.temperature))  # [V] or [K], largest is 1
        kept = _kept(weights, parameters.top_p, parameters.min_p)
        if kept is not None:
            ids, weights = kept if ids is None else ids[kept], weights[kept]
        place = _place(weights, self._generator.random())
        return place if ids is None else int(ids[place])

    def _described(self, token: int, logits: Floats) -> Choice:
        ends = any(constraint.ends for constraint in self._constraints)
        if not self._log_probs:
            return Choice(token, ends=ends)
        peak = float(logits.max())
        total = peak + float(np.log(np.exp(logits - peak).sum(dtype=np.float64)))
        likeliest = largest(logits, self._num_alternatives) if self._num_alternatives else ()
        alternatives = {int(i): float(logits[i]) - total for i in likeliest}
        return Choice(token, float(logits[token]) - total, alternatives, ends)


def largest(row: Floats, count: int) -> Indices:
    """Indices of the `count` largest entries, largest first, equal ones by index."""
    blocks = row.size // _BLOCK
    if count <= blocks:
        # At least `count` entries reach the count-th largest block maximum: a bound without sorting the row.
        row_bound = np.partition(row[: blocks * _BLOCK].reshape(blocks, _BLOCK).max(1), -count)[-count]
        candidates = np.flatnonzero(row >= row_bound)
    else:
        candidates = np.arange(row.size)
    return candidates[np.argsort(-row[candidates], kind="stable")[:count]]


def _place(weights: Floats, uniform: float) -> int:
    """Where the running sum of `weights` passes `uniform` of the whole: the block first, then inside it."""
    blocks = np.cumsum(np.add.reduceat(weights, np.arange(0, weights.size, _BLOCK)), dtype=np.float64)
    target = uniform * blocks[-1]
    block = _passes(blocks, target)
    start = block * _BLOCK
    before = blocks[block - 1] if block else 0.0
    inside = np.cumsum(weights[start : start + _BLOCK], dtype=np.float64)
    return start + _passes(inside, target - before)


def _passes(running: NDArray[np.float64], target: float) -> int:
    """First index whose running sum exceeds `target`; rounding may not lead past the last positive weight."""
    return int(np.searchsorted(running, min(target, np.nextafter(running[-1], 0.0)), side="right"))


def _kept(weights: Floats, top_p: float, min_p: float) -> Indices | None:
    """Indices, ascending, that top-p and then min-p keep; None keeps all."""
    kept = None
    if top_p < 1:
        kept = _nucleus(weights, top_p)
    if min_p > 0:
        above = weights >= min_p
        kept = np.flatnonzero(above) if kept is None else kept[above[kept]]
    return kept


def _nucleus(weights: Floats, top_p: float) -> Indices:
    """The smallest set of largest weights that holds `top_p` of the whole, ascending (arXiv:1904.09751)."""
    total = float(weights.sum(dtype=np.float64))
    # Weights below this floor hold less than 1 - top_p together, so the nucleus lies above it.
    falling = np.sort(weights[weights >= (1 - top_p) * total / weights.size])[::-1]
    count = 1 + int(np.searchsorted(np.cumsum(falling, dtype=np.float64), top_p * total, side="left"))
    least = falling[min(count, falling.size) - 1]
    kept = np.flatnonzero(weights >= least)
    surplus = kept.size - count
    # Of equals at the edge, those of the lowest index stay.
    return np.delete(kept, np.flatnonzero(weights[kept] == least)[-surplus:]) if surplus > 0 else kept


def _penalises(request: GenerationRequest) -> bool:
    parameters = request.sampling
    penalties = (parameters.repetition_penalty - 1, parameters.presence_penalty, parameters.frequency_penalty)
    return any(penalties)

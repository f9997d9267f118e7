"""Penalties and bias: the few tokens whose logits a request changes, and by how much."""

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.requests.request import GenerationRequest

Floats = NDArray[np.float32]
_LEAST_ROOM = 64


class Adjustments:
    """Repetition penalty over prompt and output; presence, frequency penalty over output; then the bias.

    The first is that of arXiv:1909.05858, the others are OpenAI's. The tokens concerned are kept as they
    come, so that a step works on as many numbers as there are of them, and not on the whole vocabulary.
    """

    def __init__(self, request: GenerationRequest) -> None:
        sampling = request.sampling
        self._repetition, self._presence = sampling.repetition_penalty, sampling.presence_penalty
        self._frequency = sampling.frequency_penalty
        self._penalises = bool(self._repetition != 1 or self._presence or self._frequency)
        largest_bias = max(sampling.logit_bias.values(), default=0.0)
        self._raises = min(self._repetition - 1, self._presence, self._frequency, -largest_bias) < 0
        seen = np.unique(np.concatenate(request.prompts)) if self._penalises else np.empty(0, np.int64)
        biased = np.fromiter(sampling.logit_bias, np.int64)
        ids = np.union1d(seen, biased)
        self._places = {token: place for place, token in enumerate(ids.tolist())}
        self._said: set[int] = set()
        self._ids = ids  # [N], of which the first `len(self._places)` count
        self._factors = np.where(np.isin(ids, seen), self._repetition, 1).astype(np.float32)
        self._shifts = np.zeros(ids.size, np.float32)
        self._shifts[np.searchsorted(ids, biased)] = list(sampling.logit_bias.values())

    def __bool__(self) -> bool:
        """Whether any logit is changed."""
        return bool(self._places)

    def spare(self, logits: Floats, greedy: int) -> bool:
        """Whether `greedy`, the first of the largest logits [V], is so after all changes, too."""
        if greedy in self._places:
            return False
        return not self._raises or self._values(logits).max() < logits[greedy]

    def apply(self, row: Floats) -> None:
        """Change logits [V] in place."""
        row[self._ids[: len(self._places)]] = self._values(row)

    def advance(self, token: int) -> None:
        """Take the chosen token."""
        if not self._penalises:
            return
        place = self._places.setdefault(token, len(self._places))
        if place == self._ids.size:
            self._grow()
        self._ids[place] = token
        self._factors[place] = self._repetition
        self._shifts[place] -= self._frequency + (0 if token in self._said else self._presence)
        self._said.add(token)

    def _grow(self) -> None:
        """Make room for as many tokens again: a request may say far less than it is allowed to."""
        room = (0, max(_LEAST_ROOM, self._ids.size))
        self._ids, self._factors = np.pad(self._ids, room), np.pad(self._factors, room)
        self._shifts = np.pad(self._shifts, room)

    def _values(self, logits: Floats) -> Floats:
        """What the logits of the tokens concerned become: [n]."""
        number = len(self._places)
        values, factors = logits[self._ids[:number]], self._factors[:number]
        penalised = np.where(values > 0, values / factors, values * factors)
        changed: Floats = penalised + self._shifts[:number]
        return changed

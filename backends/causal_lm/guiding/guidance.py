"""Guided decoding: the tokens that keep an answer in the form that its request asked for.

The grammars are llguidance's. A guide is compiled once, away from the engine's thread and only after it has
been tried within bounds in another process, because a schema of one kilobyte can need gigabytes.
"""

import re
import threading
import time
from collections import OrderedDict

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray
from tokenizers import Tokenizer

from backends.causal_lm.guiding.guide_checker import GuideChecker
from backends.causal_lm.guiding.guide_tokens import compile_guide, tokenizer_json
from backends.causal_lm.guiding.guides import GUIDE, TYPE, Guide
from backends.causal_lm.manifest import Manifest
from backends.causal_lm.requests.contract import RequestError

Floats = NDArray[np.float32]

_KEPT = 32
_LONGEST_REASON = 300
# Processor time of the engine's thread: what a guide may use at all, and beside that for each of its tokens.
_SECONDS, _SECONDS_A_TOKEN = 0.5, 0.005

# A byte of the library's mask, the lowest bit first, as ceilings of eight logits: [256, 8].
_BITS = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
_CEILINGS = np.where(_BITS, np.float32(np.inf), np.float32(-np.inf))


class Matcher:
    """One answer's place in its grammar; the sampler's constraint."""

    def __init__(self, matcher: LLMatcher, *, control: NDArray[np.int64], eos: tuple[int, ...]) -> None:
        self._matcher = matcher
        self._control, self._eos = control, list(eos)
        self._forced: list[int] | None = None  # what must come next, once it has been asked for
        self._seconds_left = _SECONDS
        self.ends = False

    def forced(self) -> int | None:
        """The token that must come next, where the grammar leaves no other; some microseconds."""
        started = time.thread_time()
        token = self._forced_token()
        self._spend(time.thread_time() - started)
        return None if token in self._control else token

    def allows(self, token: int) -> bool:
        """Whether the grammar allows `token` next; some microseconds, where a mask takes hundreds."""
        started = time.thread_time()
        forced = self._forced_token()
        # What is forced has one spelling in the library's mask, the tokenizer's; validating takes them all.
        allowed = self._matcher.validate_tokens([token]) == 1 if forced is None else token == forced
        self._spend(time.thread_time() - started)
        return allowed and token not in self._control

    def restrict(self, row: Floats) -> None:
        """Bar from logits [V] what the grammar does not allow next; end-of-sequence is allowed at its end.

        If that leaves nothing, the answer ends where it may. Raises RequestError where it may not, or when
        the grammar takes too long.
        """
        started = time.thread_time()
        np.minimum(row, self._ceilings(row.size), out=row)
        if row.max() == -np.inf:
            self._end(row)
        self._spend(time.thread_time() - started)

    def advance(self, token: int) -> None:
        """Take the chosen token; `ends` says that the grammar is complete and nothing may follow."""
        if token in self._eos:
            return
        started = time.thread_time()
        self._forced = None
        if not self._matcher.consume_token(token):
            raise _fault(self._matcher.get_error())
        self.ends = self._matcher.is_stopped()
        self._spend(time.thread_time() - started - _SECONDS_A_TOKEN)

    def _forced_token(self) -> int | None:
        if self._forced is None:
            self._forced = self._matcher.compute_ff_tokens()
        return self._forced[0] if self._forced else None

    def _ceilings(self, vocab_size: int) -> Floats:
        """Infinity for each token allowed, else minus infinity; of control tokens only end-of-sequence."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._matcher.is_error():
            raise _fault(self._matcher.get_error())
        ceilings: Floats = _CEILINGS.take(bits, axis=0).reshape(-1)[:vocab_size]
        ceilings[self._control] = -np.inf
        return ceilings

    def _end(self, row: Floats) -> None:
        if not self._matcher.is_accepting() or not self._eos:
            raise RequestError(GUIDE, "no token is left that it allows and that bad_words don't bar")
        row[self._eos[0]] = 0.0

    def _spend(self, seconds: float) -> None:
        self._seconds_left -= seconds
        if self._seconds_left < 0:
            raise RequestError(
                GUIDE, f"takes more than {_SECONDS_A_TOKEN * 1000:g} ms a token to follow; make it simpler"
            )


class Guidance:
    """Makes matchers for one model; the guides used last are kept compiled."""

    def __init__(self, tokenizer: Tokenizer, manifest: Manifest) -> None:
        self._model, self._vocab_size = manifest.model, manifest.vocab_size
        self._eos = manifest.special_tokens.eos
        self._tokenizer = tokenizer
        self._compiled: OrderedDict[Guide, LLMatcher | RequestError] = OrderedDict()
        self._changing = threading.Lock()  # of `_compiled`; held for moments
        self._compiling = threading.Lock()
        self._tools: tuple[LLTokenizer, GuideChecker] | None = None
        added = tokenizer.get_added_tokens_decoder().items()
        control = {token_id for token_id, token in added if token.special and token_id < self._vocab_size}
        self._control = np.array(sorted(control - set(self._eos)), np.int64)

    def known(self, guide: Guide) -> Matcher | None:
        """A matcher for a guide that has been compiled, else None; raises RequestError for a bad one."""
        with self._changing:
            compiled = self._compiled.get(guide)
            if compiled is None:
                return None
            self._compiled.move_to_end(guide)
            if isinstance(compiled, RequestError):
                raise RequestError(compiled.field, compiled.message)
            copy = compiled.deep_copy()
        return Matcher(copy, control=self._control, eos=self._eos)

    def matcher(self, guide: Guide) -> Matcher:
        """A matcher for a guide, compiled now if need be, which may take seconds; raises RequestError."""
        with self._compiling:
            matcher = self.known(guide)
            if matcher is None:
                self._keep(guide, self._compile(guide))
                matcher = self.known(guide)
        assert matcher is not None, "a guide is kept before it is asked for"
        return matcher

    def close(self) -> None:
        """End the process that tries guides."""
        with self._compiling:
            if self._tools is not None:
                self._tools[1].close()

    def _keep(self, guide: Guide, compiled: LLMatcher | RequestError) -> None:
        with self._changing:
            self._compiled[guide] = compiled
            while len(self._compiled) > _KEPT:
                self._compiled.popitem(last=False)

    def _compile(self, guide: Guide) -> LLMatcher | RequestError:
        if self._tools is None:
            self._tools = self._made_tools()
        tokenizer, checker = self._tools
        if fault := checker.fault_of(guide.grammar):
            return _fault(fault)
        return compile_guide(guide.grammar, tokenizer=tokenizer)

    def _made_tools(self) -> tuple[LLTokenizer, GuideChecker]:
        """Made for the first guide, since most engines never see one; raises RequestError."""
        setup = {"vocab_size": self._vocab_size, "eos": list(self._eos) or None}
        try:
            text = tokenizer_json(self._tokenizer)
            tokenizer = LLTokenizer(text, n_vocab=self._vocab_size, eos_token=setup["eos"])
        except Exception as error:  # whatever it makes of a tokenizer of another kind
            why = f"its tokenizer is of a kind that llguidance can't read: {error!r:.200}"
            raise RequestError(TYPE, f"{self._model!r} can't be guided, {why}") from None
        return tokenizer, GuideChecker({"tokenizer": text, **setup})


def _fault(reason: str) -> RequestError:
    """The library's reason on one line, without its traces."""
    line = re.sub(r"\s+", " ", reason.replace("<non-verbose/>", "")).strip()
    return RequestError(GUIDE, f"can't be followed: {line[:_LONGEST_REASON]}")

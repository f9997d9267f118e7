"""What one generation asks for, checked against the tensor contract, and what comes back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backends.causal_lm.figures import Uncertainty
from backends.causal_lm.guiding.guides import GUIDE, TYPE, Guide
from backends.causal_lm.manifest import Manifest
from backends.causal_lm.requests.contract import ContractReader
from backends.causal_lm.requests.contract import RequestError as RequestError
from backends.causal_lm.requests.vllm_parameters import FIELD, expand

FinishReason = Literal["", "stop", "length", "cancelled"]
MAX_ALTERNATIVES = 20
MAX_SESSION_ID = 256  # characters
MAX_USER = 256
_ALWAYS_TOLD = ("return_num_input_tokens", "return_num_output_tokens")  # TensorRT-LLM's clients ask for these


@dataclass(frozen=True, slots=True)
class SamplingParameters:
    """How tokens are drawn; temperature 0 is greedy, `logit_bias` maps token id to an added bias."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    seed: int = 0
    logit_bias: Mapping[int, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One validated generation; counts are tokens.

    `prompts` are int64 [P] each: of several, the distributions of the next token are averaged.
    `session_id` says which parked state the one at the end takes the place of. In the queue a lower
    `priority` goes first, users take turns, and `timeout` ms may pass, 0 for ever.
    """

    id: str
    prompts: tuple[NDArray[np.int64], ...]
    max_tokens: int
    min_tokens: int = 0
    sampling: SamplingParameters = SamplingParameters()
    stop_words: tuple[str, ...] = ()
    bad_words: tuple[str, ...] = ()
    guide: Guide | None = None
    stream: bool = False
    exclude_input: bool = True
    return_log_probs: bool = False
    num_log_probs: int = 0
    prompt: str | None = None
    session_id: str | None = None
    priority: int = 0
    timeout: int = 0
    user: str = ""

    @classmethod
    def from_values(
        cls, request_id: str, values: Mapping[str, object], manifest: Manifest
    ) -> "GenerationRequest":
        """Build from plain contract values (tensor name → scalar, string, bytes, or sequence).

        Raises RequestError naming the tensor, what was given and what is allowed.
        """
        reader = ContractReader(_with_parameters(values))
        prompts = reader.prompts(manifest)
        reader.alias("min_tokens", "min_length")
        room = manifest.max_length - max(map(len, prompts))
        max_tokens = reader.integer("max_tokens", min(room, manifest.sampling.max_tokens or room), low=1)
        request = cls(
            id=request_id,
            prompts=prompts,
            max_tokens=max_tokens,
            min_tokens=reader.integer("min_tokens", 0, low=0, high=max_tokens),
            sampling=_sampling(reader, manifest),
            stop_words=reader.words("stop_words"),
            bad_words=reader.words("bad_words"),
            guide=_guide(reader),
            stream=reader.boolean("stream", False),
            exclude_input=reader.boolean("exclude_input_in_output", True),
            return_log_probs=reader.boolean("return_log_probs", False),
            num_log_probs=reader.integer("num_log_probs", 0, low=0, high=MAX_ALTERNATIVES),
            prompt=reader.optional_text("prompt"),
            session_id=_session_id(reader, len(prompts)),
            priority=reader.integer("priority", 0, low=-(2**31), high=2**31 - 1),
            timeout=reader.integer("timeout", 0, low=0, high=2**31 - 1),
            user=_user(reader),
        )
        for name in _ALWAYS_TOLD:
            reader.boolean(name, True)
        reader.refuse_unknown()
        return request


@dataclass(frozen=True, slots=True)
class Timings:
    """Nanoseconds in the queue, from the first prompt chunk to the first token, and from there to the end."""

    queue_ns: int
    prefill_ns: int
    decode_ns: int


@dataclass(frozen=True, slots=True)
class Output:
    """One response: the text and ids since the last one, counts and sums so far.

    `log_probs` and `top_log_probs` have one entry per id in `token_ids` when asked for, else none.
    `uncertainty` and `cot_budget` (tokens) are None for a model that does not tell them.
    """

    text: str
    token_ids: tuple[int, ...]
    num_input_tokens: int
    num_output_tokens: int
    num_cached_tokens: int = 0
    finish_reason: FinishReason = ""
    stop_reason: str = ""
    cum_log_prob: float = 0.0
    log_probs: tuple[float, ...] = ()
    top_log_probs: tuple[Mapping[int, float], ...] = ()
    timings: Timings | None = None
    uncertainty: Uncertainty | None = None
    cot_budget: int | None = None


class Sink(Protocol):
    """Where one request's responses go; called from the engine's thread (`fail` also from the submitter's).

    Exactly one of `send(…, final=True)` and `fail` ends a request; nothing is called after it.
    """

    def send(self, output: Output, final: bool) -> None: ...

    def fail(self, code: str, message: str) -> None:
        """End with an error; `message` is the contract's whole line, `CODE: FIELD: …`."""
        ...

    def is_cancelled(self) -> bool: ...


def _with_parameters(values: Mapping[str, object]) -> Mapping[str, object]:
    """The values with those of `sampling_parameters` beside them; RequestError if one is there twice."""
    text = ContractReader(values).optional_text(FIELD)
    if text is None:
        return values
    direct = {name: value for name, value in values.items() if name != FIELD}
    expanded = expand(text)
    if twice := sorted(direct.keys() & expanded.keys()):
        raise RequestError(FIELD, f"{twice[0]} is given there and as an input; give it once")
    return direct | expanded


def _guide(reader: ContractReader) -> Guide | None:
    kind, text = reader.optional_text(TYPE), reader.optional_text(GUIDE)
    if kind is None and text is not None:
        raise RequestError(TYPE, f"is missing, it says what {GUIDE} is written in")
    return None if kind is None else Guide.from_contract(kind, text)


def _user(reader: ContractReader) -> str:
    user = reader.optional_text("user") or ""
    if len(user) > MAX_USER:
        raise RequestError("user", f"it has {len(user)} characters, allowed are up to {MAX_USER}")
    return user


def _session_id(reader: ContractReader, num_prompts: int) -> str | None:
    session_id = reader.optional_text("session_id")
    if session_id is not None and not 1 <= len(session_id) <= MAX_SESSION_ID:
        raise RequestError(
            "session_id", f"it has {len(session_id)} characters, allowed are 1 to {MAX_SESSION_ID}"
        )
    if session_id is not None and num_prompts > 1:
        raise RequestError("session_id", f"{num_prompts} prompts were given, a session goes on with one")
    return session_id


def _sampling(reader: ContractReader, manifest: Manifest) -> SamplingParameters:
    default = manifest.sampling
    return SamplingParameters(
        temperature=reader.number("temperature", default.temperature, low=0, high=2),
        top_k=reader.integer("top_k", default.top_k, low=0),
        top_p=reader.number("top_p", default.top_p, low=0, high=1, above_low=True),
        min_p=reader.number("min_p", default.min_p, low=0, high=1),
        repetition_penalty=reader.number(
            "repetition_penalty", default.repetition_penalty, low=0, high=2, above_low=True
        ),
        presence_penalty=reader.number("presence_penalty", 0.0, low=-2, high=2),
        frequency_penalty=reader.number("frequency_penalty", 0.0, low=-2, high=2),
        seed=reader.integer("seed", None, low=0, high=2**64 - 1),
        logit_bias=reader.logit_bias(manifest.vocab_size),
    )

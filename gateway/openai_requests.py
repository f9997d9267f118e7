"""What OpenAI's request bodies share: what is accepted, in which range, and what it becomes on the wire."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from client.wire import GenerateRequest
from gateway.openai_guides import Guide, StructuredOutputs
from gateway.openai_messages import Body, Unsupported, contradiction

MAX_CHOICES = 8
MAX_PROMPTS = 16
MAX_BLOCKS = 64
MAX_PERMUTATIONS = 64
MAX_BAD_WORDS = 64

_GUIDE_TENSORS = ("guided_decoding_guide_type", "guided_decoding_guide")

TokenId = Annotated[int, Field(ge=0, lt=2**31)]
BadWord = Annotated[str, Field(min_length=1, max_length=256)]
LogProbs = Annotated[int, Field(ge=0, le=20)]
SessionId = Annotated[str, Field(min_length=1, max_length=256)]
UserId = Annotated[str, Field(max_length=256)]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


def _as_prompts(value: Any) -> Any:
    """Return a list of prompts, each a string or a list of token ids."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    return value


def _one_prompt(value: Any) -> Any:
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(type(item) is int and 0 <= item < 2**31 for item in value):
        return value
    raise PydanticCustomError("prompt_type", "A prompt is a string or a non-empty array of token ids")


def _biases(value: dict[int, float]) -> dict[int, float]:
    for token, bias in value.items():
        if token < 0 or not -100 <= bias <= 100:
            raise ValueError(f"token {token}: {bias} is outside token ids ≥ 0 and biases -100 to 100")
    return value


class StreamOptions(Body):
    """What a stream carries besides text."""

    include_usage: bool = False


class Sampling(Body):
    """The fields that chat and plain completions share.

    The last ones are extensions: five as in other servers, `session_id` (an OpenAI client's
    `prompt_cache_key` does the same), evidence in several orders, words and forms of the answer.
    """

    tensors_named: ClassVar[Mapping[str, str]] = {}

    model: Annotated[str, Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    stop: (
        Annotated[
            list[Annotated[str, Field(min_length=1, max_length=256)]],
            BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
            Field(max_length=4),
        ]
        | None
    ) = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**64)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: Annotated[dict[int, float], AfterValidator(_biases)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: UserId | None = None
    safety_identifier: UserId | None = None
    prompt_cache_key: SessionId | None = None
    top_k: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=2)] | None = None
    min_tokens: Annotated[int, Field(ge=0, lt=2**31)] | None = None
    session_id: SessionId | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] | None = None
    evidence: Annotated[list[str], Field(min_length=1, max_length=MAX_BLOCKS)] | None = None
    num_permutations: Annotated[int, Field(ge=1, le=MAX_PERMUTATIONS)] | None = None
    bad_words: Annotated[list[BadWord], Field(max_length=MAX_BAD_WORDS)] | None = None
    structured_outputs: StructuredOutputs | None = None

    @model_validator(mode="after")
    def _options_have_their_subject(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise contradiction("stream_options", "it is only allowed when 'stream' is true")
        if self.num_permutations is not None and self.evidence is None:
            raise contradiction("num_permutations", "it is only allowed with 'evidence', which it permutes")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether the stream ends with a chunk of token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    @abstractmethod
    def prompts(self) -> Sequence[Mapping[str, Any]]:
        """Return, per prompt, the fields of GenerateRequest that carry it."""

    @abstractmethod
    def log_probs(self) -> int | None:
        """Return how many alternatives a token were asked for; None when log-probs were not."""

    def limit(self) -> int | None:
        """Return the most tokens to generate."""
        return self.max_tokens

    def guide(self) -> Guide | None:
        """Return what the answer's form is to be."""
        return self.structured_outputs.guide() if self.structured_outputs is not None else None

    def tensor_parameters(self) -> Mapping[str, str]:
        """Return this body's fields by the tensors that they became."""
        guide = self.guide()
        guides = {} if guide is None else dict.fromkeys(_GUIDE_TENSORS, guide.param)
        return {**self.tensors_named, **guides}

    def requests(self) -> list[GenerateRequest]:
        """Return one request per choice: prompts in order, n of each; choice i has the seed + i."""
        return [self._request(prompt, i) for prompt in self.prompts() for i in range(self.n or 1)]

    def _request(self, prompt: Mapping[str, Any], i: int) -> GenerateRequest:
        log_probs, guide = self.log_probs(), self.guide()
        return GenerateRequest(
            **prompt,
            evidence=self.evidence,
            num_permutations=self.num_permutations,
            max_tokens=self.limit(),
            min_tokens=self.min_tokens,
            stop_words=self.stop or None,
            bad_words=self.bad_words or None,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            seed=None if self.seed is None else (self.seed + i) % 2**64,
            logit_bias=self.logit_bias or None,
            guided_decoding_guide_type=None if guide is None else guide.kind,
            guided_decoding_guide=None if guide is None else guide.text,
            stream=bool(self.stream),
            return_log_probs=None if log_probs is None else True,
            num_log_probs=log_probs,
            session_id=self.session_id or self.prompt_cache_key,
            priority=self.priority,
            user=self.safety_identifier or self.user,
        )


class CompletionRequest(Sampling):
    """The body of `POST /v1/completions`."""

    tensors_named: ClassVar[Mapping[str, str]] = {"num_log_probs": "logprobs"}

    prompt: Annotated[
        list[Annotated[Any, AfterValidator(_one_prompt)]],
        BeforeValidator(
            _as_prompts, json_schema_input_type=str | list[str] | list[TokenId] | list[list[TokenId]]
        ),
        Field(min_length=1, max_length=MAX_PROMPTS),
    ]
    echo: bool | None = None
    logprobs: LogProbs | None = None
    best_of: Unsupported = None
    suffix: Unsupported = None

    @model_validator(mode="after")
    def _text_where_it_is_needed(self) -> Self:
        if self.echo and self.logprobs is not None:
            raise contradiction("echo", "log-probs of the prompt are not available; leave out 'logprobs'")
        if self.echo and any(not isinstance(prompt, str) for prompt in self.prompt):
            raise contradiction("echo", "token ids have no text here to echo; send the prompt as a string")
        if self.evidence is not None and any(not isinstance(prompt, str) for prompt in self.prompt):
            raise contradiction("evidence", "token ids have no place for it; send the prompt as a string")
        return self

    def prompts(self) -> Sequence[Mapping[str, Any]]:
        """Return each prompt as text, or as token ids that go to the engine past the tokenizer."""
        echo = {"exclude_input_in_output": False} if self.echo else {}
        return [{"text_input" if isinstance(p, str) else "input_ids": p, **echo} for p in self.prompt]

    def log_probs(self) -> int | None:
        """Return the alternatives asked for."""
        return self.logprobs

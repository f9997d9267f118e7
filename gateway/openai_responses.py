"""OpenAI's answers: whole documents, and the chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from uuid import uuid4

from client.wire import GenerateResponse

_FINISH_REASONS = {"stop": "stop", "length": "length"}


class Form(Protocol):
    """What differs between chat and plain completions."""

    id_prefix: str
    document_object: str
    chunk_object: str

    def opening(self) -> Iterable[Mapping[str, Any]]:
        """Return the first chunks' content of a choice, before any text."""

    def piece(self, response: GenerateResponse) -> Mapping[str, Any]:
        """Return a chunk's content for a piece of text."""

    def closing(self) -> Mapping[str, Any]:
        """Return the content of a choice's last chunk."""

    def whole(self, response: GenerateResponse) -> Mapping[str, Any]:
        """Return the content of a choice in a document."""


class ChatForm:
    """`chat.completion`: text in messages and deltas."""

    id_prefix = "chatcmpl-"
    document_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *, log_probs: bool) -> None:
        self._log_probs = log_probs

    def opening(self) -> Iterable[Mapping[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}, "logprobs": None}]

    def piece(self, response: GenerateResponse) -> Mapping[str, Any]:
        return {"delta": {"content": response.text_output}, "logprobs": self._scores(response)}

    def closing(self) -> Mapping[str, Any]:
        return {"delta": {}, "logprobs": None}

    def whole(self, response: GenerateResponse) -> Mapping[str, Any]:
        message = {"role": "assistant", "content": response.text_output, "refusal": None}
        return {"message": message, "logprobs": self._scores(response)}

    def _scores(self, response: GenerateResponse) -> Mapping[str, Any] | None:
        if not self._log_probs:
            return None
        tops = response.top_log_probs or [{}] * len(response.output_ids)
        scored = zip(response.output_ids, response.output_log_probs, tops, strict=True)
        content = [
            {**_scored(token, score), "top_logprobs": [_scored(*item) for item in top.items()]}
            for token, score, top in scored
        ]
        return {"content": content, "refusal": None}


class CompletionForm:
    """`text_completion`: bare text."""

    id_prefix = "cmpl-"
    document_object = "text_completion"
    chunk_object = "text_completion"

    def __init__(self, *, log_probs: bool) -> None:
        self._log_probs = log_probs

    def opening(self) -> Iterable[Mapping[str, Any]]:
        return []

    def piece(self, response: GenerateResponse) -> Mapping[str, Any]:
        return {"text": response.text_output, "logprobs": self._scores(response)}

    def closing(self) -> Mapping[str, Any]:
        return {"text": "", "logprobs": None}

    def whole(self, response: GenerateResponse) -> Mapping[str, Any]:
        return self.piece(response)

    def _scores(self, response: GenerateResponse) -> Mapping[str, Any] | None:
        if not self._log_probs:
            return None
        tops = [{_token(token): score for token, score in top.items()} for top in response.top_log_probs]
        return {
            "tokens": [_token(token) for token in response.output_ids],
            "token_logprobs": list(response.output_log_probs),
            "top_logprobs": tops or None,
            "text_offset": None,
        }


def _token(token: int | str) -> str:
    # The gateway has no tokenizer; this spelling is what other servers send for "the id, not the text".
    return f"token_id:{token}"


def _scored(token: int | str, score: float) -> dict[str, Any]:
    return {"token": _token(token), "logprob": score, "bytes": None}


class Answer:
    """One answer's constant parts (id, time, model), and the chunks or the document around them."""

    def __init__(self, form: Form, model: str, *, include_usage: bool) -> None:
        self.id = f"{form.id_prefix}{uuid4().hex}"
        self._form = form
        self._constant = {"id": self.id, "created": int(time.time()), "model": model}
        head = _json({**self._constant, "object": form.chunk_object})
        self._head = f'{head[:-1]},"choices":['
        self._tail = '],"usage":null}' if include_usage else "]}"

    def opening(self, index: int) -> list[str]:
        """Return the chunks that begin choice `index`."""
        return [self._chunk(index, content, None) for content in self._form.opening()]

    def pieces(self, index: int, response: GenerateResponse) -> list[str]:
        """Return the chunks for one response: its text if it has any, and the end if it is the last."""
        chunks = []
        if response.text_output or response.output_log_probs:
            chunks.append(self._chunk(index, self._form.piece(response), None))
        if response.finish_reason:
            content = {**self._form.closing(), **extension(response)}
            chunks.append(self._chunk(index, content, _FINISH_REASONS[response.finish_reason]))
        return chunks

    def usage_chunk(self, usage: Mapping[str, Any]) -> str:
        """Return the chunk with the token counts and no choice."""
        return f'{self._head}],"usage":{_json(usage)}}}'

    def document(self, responses: Sequence[GenerateResponse], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole answer; `responses` holds the only response of each choice."""
        choices = [
            {
                "index": index,
                **self._form.whole(response),
                **extension(response),
                "finish_reason": _FINISH_REASONS[response.finish_reason],
            }
            for index, response in enumerate(responses)
        ]
        return {**self._constant, "object": self._form.document_object, "choices": choices, "usage": usage}

    def _chunk(self, index: int, content: Mapping[str, Any], finish_reason: str | None) -> str:
        choice = _json({"index": index, **content, "finish_reason": finish_reason})
        return f"{self._head}{choice}{self._tail}"


def extension(response: GenerateResponse) -> dict[str, Any]:
    """Return what the model tells of itself, under a name that OpenAI's schema leaves free; else nothing."""
    told: dict[str, Any] = {}
    if response.uncertainty is not None:
        told["uncertainty"] = response.uncertainty["mean"]
    if response.cot_budget is not None:
        told["cot_budget"] = response.cot_budget
    return {"trident": told} if told else {}


def usage_of(last: Sequence[GenerateResponse], choices_per_prompt: int) -> dict[str, Any]:
    """Return the token counts over the last response of each choice; a prompt counts once."""
    first_choices = last[::choices_per_prompt]
    prompt = sum(response.num_input_tokens for response in first_choices)
    completion = sum(response.num_output_tokens for response in last)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": sum(each.num_cached_tokens for each in first_choices)},
    }


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))

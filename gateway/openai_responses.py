"""OpenAI's answers: whole documents, and the chunks of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any
from uuid import uuid4

from client.wire import GenerateResponse
from gateway.openai_forms import Form


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
        chunks = [self._chunk(index, content, None) for content in self._form.pieces(index, response)]
        if response.finish_reason:
            content = {**self._form.closing(), **extension(response)}
            chunks.append(self._chunk(index, content, self._form.reason(index, response)))
        return chunks

    def usage_chunk(self, usage: Mapping[str, Any]) -> str:
        """Return the chunk with the token counts and no choice."""
        return f'{self._head}],"usage":{_json(usage)}}}'

    def document(self, responses: Sequence[GenerateResponse], usage: Mapping[str, Any]) -> dict[str, Any]:
        """Return the whole answer; `responses` holds the only response of each choice."""
        choices = [
            {
                "index": index,
                **self._form.whole(index, response),
                **extension(response),
                "finish_reason": self._form.reason(index, response),
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

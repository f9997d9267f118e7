"""What differs between OpenAI's chats and plain completions: messages and deltas, or bare text."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Protocol

from client.wire import GenerateResponse
from gateway.tool_calls import Arguments, CallBegins, Piece, ToolCallReader

_FINISH_REASONS = {"stop": "stop", "length": "length"}


class Form(Protocol):
    """How one answer's choices are written; a content is a choice without its index and reason."""

    id_prefix: str
    document_object: str
    chunk_object: str

    def opening(self) -> Iterable[Mapping[str, Any]]:
        """Return the first chunks' content of a choice, before any text."""

    def pieces(self, index: int, response: GenerateResponse) -> Iterable[Mapping[str, Any]]:
        """Return the contents of the chunks for one response of choice `index`."""

    def closing(self) -> Mapping[str, Any]:
        """Return the content of a choice's last chunk."""

    def whole(self, index: int, response: GenerateResponse) -> Mapping[str, Any]:
        """Return the content of a choice in a document."""

    def reason(self, index: int, response: GenerateResponse) -> str:
        """Return why choice `index` ended, after all its responses have been written."""


class ChatForm:
    """`chat.completion`: text in messages and deltas, and calls of the tools named."""

    id_prefix = "chatcmpl-"
    document_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def __init__(self, *, log_probs: bool, tools: Collection[str] = ()) -> None:
        self._log_probs = log_probs
        self._tools = tools
        self._readers: dict[int, ToolCallReader] = {}

    def opening(self) -> Iterable[Mapping[str, Any]]:
        return [{"delta": {"role": "assistant", "content": ""}, "logprobs": None}]

    def pieces(self, index: int, response: GenerateResponse) -> Iterable[Mapping[str, Any]]:
        """Log-probs go with the first chunk, although a call's text may come out later."""
        deltas = [_delta(piece) for piece in self._read(index, response)]
        scores = self._scores(response) if response.output_log_probs else None
        for place, delta in enumerate(deltas or ([{}] if scores else [])):
            yield {"delta": delta, "logprobs": None if place else scores}

    def closing(self) -> Mapping[str, Any]:
        return {"delta": {}, "logprobs": None}

    def whole(self, index: int, response: GenerateResponse) -> Mapping[str, Any]:
        pieces = self._read(index, response)
        text, calls = "".join(piece for piece in pieces if isinstance(piece, str)), _calls(pieces)
        content = text if text or not calls else None
        message = {"role": "assistant", "content": content, "refusal": None}
        called = {"tool_calls": calls} if calls else {}
        return {"message": {**message, **called}, "logprobs": self._scores(response)}

    def reason(self, index: int, response: GenerateResponse) -> str:
        called = index in self._readers and self._readers[index].num_calls > 0
        return "tool_calls" if called and response.finish_reason == "stop" else _reason(response)

    def _read(self, index: int, response: GenerateResponse) -> Sequence[Piece]:
        if not self._tools:
            return [response.text_output] if response.text_output else []
        reader = self._readers.setdefault(index, ToolCallReader(self._tools))
        pieces = reader.feed(response.text_output)
        return [*pieces, *reader.finish()] if response.finish_reason else pieces

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

    def pieces(self, index: int, response: GenerateResponse) -> Iterable[Mapping[str, Any]]:
        return [self.whole(index, response)] if response.text_output or response.output_log_probs else []

    def closing(self) -> Mapping[str, Any]:
        return {"text": "", "logprobs": None}

    def whole(self, index: int, response: GenerateResponse) -> Mapping[str, Any]:
        return {"text": response.text_output, "logprobs": self._scores(response)}

    def reason(self, index: int, response: GenerateResponse) -> str:
        return _reason(response)

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


def _reason(response: GenerateResponse) -> str:
    return _FINISH_REASONS[response.finish_reason]


def _delta(piece: Piece) -> dict[str, Any]:
    if isinstance(piece, str):
        return {"content": piece}
    if isinstance(piece, Arguments):
        return {"tool_calls": [{"index": piece.index, "function": {"arguments": piece.text}}]}
    return {"tool_calls": [{"index": piece.index, **_call(piece, "")}]}


def _calls(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """The calls of a whole answer."""
    arguments: dict[int, str] = {}
    for piece in pieces:
        if isinstance(piece, Arguments):
            arguments[piece.index] = arguments.get(piece.index, "") + piece.text
    begun = [piece for piece in pieces if isinstance(piece, CallBegins)]
    return [_call(call, arguments.get(call.index, "")) for call in begun]


def _call(call: CallBegins, arguments: str) -> dict[str, Any]:
    return {"id": call.id, "type": "function", "function": {"name": call.name, "arguments": arguments}}


def _token(token: int | str) -> str:
    # The gateway has no tokenizer; this spelling is what other servers send for "the id, not the text".
    return f"token_id:{token}"


def _scored(token: int | str, score: float) -> dict[str, Any]:
    return {"token": _token(token), "logprob": score, "bytes": None}

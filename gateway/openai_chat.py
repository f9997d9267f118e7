"""The body of a chat: what it has besides what every generation has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Self

from pydantic import Field, model_validator

from gateway.openai_guides import Guide, ResponseFormat
from gateway.openai_messages import Message, Unsupported, contradiction
from gateway.openai_requests import LogProbs, Sampling
from gateway.openai_tools import MAX_TOOLS, Tool, ToolChoice, tool_guide


class ChatRequest(Sampling):
    """The body of `POST /v1/chat/completions`."""

    tensors_named: ClassVar[Mapping[str, str]] = {"text_input": "messages", "input_ids": "messages"}

    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1, lt=2**31)] | None = None
    logprobs: bool | None = None
    top_logprobs: LogProbs | None = None
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = None
    functions: Unsupported = None
    function_call: Unsupported = None
    modalities: Unsupported = None
    audio: Unsupported = None
    prediction: Unsupported = None
    reasoning_effort: Unsupported = None
    web_search_options: Unsupported = None
    service_tier: Unsupported = None
    store: Unsupported = None
    metadata: Unsupported = None

    @model_validator(mode="after")
    def _agree(self) -> Self:
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise contradiction("max_tokens", "give it or 'max_completion_tokens', not both")
        if self.top_logprobs is not None and not self.logprobs:
            raise contradiction("top_logprobs", "it is only allowed when 'logprobs' is true")
        if self.response_format is not None and self.structured_outputs is not None:
            raise contradiction("structured_outputs", "give it or 'response_format', not both")
        return self

    @model_validator(mode="after")
    def _tools_agree(self) -> Self:
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise contradiction("tools", "two of them have the same name")
        for field in ("tool_choice", "parallel_tool_calls"):
            if getattr(self, field) is not None and not names:
                raise contradiction(field, "it is only allowed with 'tools'")
        named = self.tool_choice.function if self.tool_choice is not None else None
        if named is not None and named.name not in names:
            raise contradiction("tool_choice", f"it names none of the tools, which are {', '.join(names)}")
        formatted = self.response_format is not None and self.response_format.guide() is not None
        if self._callable() and (formatted or self.structured_outputs is not None):
            raise contradiction(
                "tools", "an answer of a given form can't call them; set 'tool_choice' to none"
            )
        return self

    def _callable(self) -> list[Tool]:
        """The tools that the answer may call."""
        barred = self.tool_choice is not None and self.tool_choice.type == "none"
        return [] if barred else self.tools or []

    def tool_names(self) -> list[str]:
        """Return the names of the tools that the answer may call."""
        return [tool.function.name for tool in self._callable()]

    def prompts(self) -> Sequence[Mapping[str, Any]]:
        """Return the conversation; the chat template is applied on the other side."""
        tools = [tool.on_wire() for tool in self._callable()]
        return [{"messages": [message.on_wire() for message in self.messages], "tools": tools or None}]

    def log_probs(self) -> int | None:
        """Return the alternatives asked for."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def limit(self) -> int | None:
        """Return the most tokens to generate, by either of its names."""
        return self.max_tokens if self.max_tokens is not None else self.max_completion_tokens

    def guide(self) -> Guide | None:
        """Return the guide, whichever field asks for one."""
        if tools := self._callable():
            return tool_guide(tools, self.tool_choice, parallel=self.parallel_tool_calls is not False)
        return self.response_format.guide() if self.response_format is not None else super().guide()

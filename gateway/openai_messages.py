"""The messages of an OpenAI chat, and what every body has in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Unsupported: TypeAlias = Annotated[None, Field(description="Refused: not supported yet.")]


class Body(BaseModel):
    """A JSON object of which every field is known and has exactly its type."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False, frozen=True)


class TextPart(Body):
    """A piece of a message; images and audio are refused."""

    type: Literal["text"]
    text: str


def contradiction(param: str, message: str) -> PydanticCustomError:
    """Return an error of a whole object that names its field to change; none is the object itself."""
    return PydanticCustomError("contradiction", "{message}", {"param": param, "message": message})


def _as_parts(content: Any) -> Any:
    if not isinstance(content, str | list):
        raise PydanticCustomError("content_type", "Input should be a string or an array of text parts")
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


class CalledFunction(Body):
    """A function and its arguments, an object in JSON."""

    name: str
    arguments: str


class ToolCall(Body):
    """A call that the assistant made."""

    id: str
    type: Literal["function"]
    function: CalledFunction


class Message(Body):
    """One turn of a chat; the text parts are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: (
        Annotated[
            list[TextPart],
            BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart]),
            Field(min_length=1),
        ]
        | None
    ) = None
    tool_calls: Annotated[list[ToolCall], Field(min_length=1, max_length=128)] | None = None
    tool_call_id: str | None = None
    name: Unsupported = None
    refusal: Unsupported = None
    audio: Unsupported = None
    annotations: Unsupported = None
    function_call: Unsupported = None

    @model_validator(mode="after")
    def _of_its_role(self) -> Self:
        if self.content is None and self.tool_calls is None:
            raise contradiction("content", "a string or an array of text parts is needed")
        if self.tool_calls is not None and self.role != "assistant":
            raise contradiction("tool_calls", "only an assistant's message has them")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise contradiction("tool_call_id", "a tool's message needs it, and no other has it")
        return self

    def on_wire(self) -> dict[str, Any]:
        """Return the contract's message; `developer` is what newer clients call `system`."""
        role = "system" if self.role == "developer" else self.role
        content = "\n".join(part.text for part in self.content or ())
        calls = {"tool_calls": [call.model_dump() for call in self.tool_calls]} if self.tool_calls else {}
        answers = {"tool_call_id": self.tool_call_id} if self.tool_call_id is not None else {}
        return {"role": role, "content": content, **calls, **answers}

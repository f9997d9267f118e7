"""The messages of an OpenAI chat, and what every body has in common."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
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


class Message(Body):
    """One turn of a chat; the text parts are joined by line breaks."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[
        list[TextPart],
        BeforeValidator(_as_parts, json_schema_input_type=str | list[TextPart]),
        Field(min_length=1),
    ]
    name: Unsupported = None
    refusal: Unsupported = None
    audio: Unsupported = None
    annotations: Unsupported = None
    tool_calls: Unsupported = None
    tool_call_id: Unsupported = None
    function_call: Unsupported = None

    def on_wire(self) -> dict[str, str]:
        """Return the contract's message; `developer` is what newer clients call `system`."""
        role = "system" if self.role == "developer" else self.role
        return {"role": role, "content": "\n".join(part.text for part in self.content)}

"""The form that a client wants an answer to have, and the guide that the engine keeps to."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator
from pydantic_core import PydanticCustomError

from gateway.openai_messages import Body, contradiction

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]


def _as_schema(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        raise PydanticCustomError("schema_type", "Input should be an object, or the JSON of one") from None


@dataclass(frozen=True, slots=True)
class Guide:
    """A guide as the wire has it; `param` is the request's field that it comes from."""

    param: str
    kind: str
    text: str


class JsonSchema(Body):
    """A named schema; the answer keeps to it, `strict` or not."""

    name: Name
    description: str | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: bool | None = None


class ResponseFormat(Body):
    """OpenAI's `response_format`."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise contradiction("json_schema", "it is needed with the type json_schema, and only there")
        return self

    def guide(self) -> Guide | None:
        """Return the guide; None for plain text."""
        if self.type == "text":
            return None
        schema = self.json_schema.schema_ if self.json_schema is not None else None
        return Guide("response_format", "json_schema", json.dumps(schema or {"type": "object"}))


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: exactly one kind of guide."""

    json_: (
        Annotated[dict[str, Any], BeforeValidator(_as_schema, json_schema_input_type=str | dict[str, Any])]
        | None
    ) = Field(default=None, alias="json")
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if sum(value is not None for value in self._kinds().values()) != 1:
            raise contradiction("", "give one of json, regex, choice, grammar")
        return self

    def guide(self) -> Guide:
        """Return the guide."""
        ((kind, value),) = ((kind, value) for kind, value in self._kinds().items() if value is not None)
        text = value if isinstance(value, str) else json.dumps(value)
        return Guide("structured_outputs", kind, text)

    def _kinds(self) -> dict[str, Any]:
        return {
            "json_schema": self.json_, "regex": self.regex, "choice": self.choice, "grammar": self.grammar
        }  # fmt: skip

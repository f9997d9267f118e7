"""How a conversation becomes text: the template saved with the model, and the same text for training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from jinja2.sandbox import ImmutableSandboxedEnvironment

Role = Literal["system", "user", "assistant"]

END = "<|endoftext|>"
PAD = "<|pad|>"
ROLE_TOKENS: dict[Role, str] = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
SPECIAL_TOKENS = (END, PAD, *ROLE_TOKENS.values())

CHAT_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] not in ('system', 'user', 'assistant') %}
{{- raise_exception("role is '" + message['role'] + "', allowed are system, user and assistant") }}
{%- endif %}
{{- '<|' + message['role'] + '|>' + message['content'] | trim }}
{%- if message['role'] == 'assistant' %}
{{- '<|endoftext|>' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|assistant|>' }}
{%- endif %}
"""


@dataclass(frozen=True)
class Message:
    """One turn: who says what."""

    role: Role
    content: str


@dataclass(frozen=True)
class Conversation:
    """Turns to learn from; `is_plain` leaves the template out, for prompts that arrive as bare text."""

    messages: tuple[Message, ...]
    is_plain: bool = False


def ask(question: str, answer: str) -> tuple[Message, Message]:
    """A user's turn and the assistant's answer to it."""
    return Message("user", question), Message("assistant", answer)


def render(messages: Sequence[Message], *, add_generation_prompt: bool) -> str:
    """The template's text of `messages`, as the server renders it; ValueError for an unknown role."""
    environment = ImmutableSandboxedEnvironment()
    template = environment.from_string(CHAT_TEMPLATE, globals={"raise_exception": _raise})
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return template.render(messages=turns, add_generation_prompt=add_generation_prompt)


def _raise(reason: str) -> NoReturn:
    raise ValueError(reason)


def segments(conversation: Conversation) -> Iterator[tuple[str, bool]]:
    """The pieces of a conversation's text, each with whether the model learns to say it.

    Joined they equal `render`; cut where the tokenizer cuts anyway, so pieces may be encoded one by one.
    """
    for message in conversation.messages:
        content, is_answer = message.content.strip(), message.role == "assistant"
        if conversation.is_plain:
            yield (f" {content}{END}" if is_answer else content), is_answer
        elif is_answer:
            yield ROLE_TOKENS["assistant"], False
            yield content + END, True
        else:
            yield ROLE_TOKENS[message.role] + content, False

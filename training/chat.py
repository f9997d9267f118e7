"""How a conversation becomes text: the template saved with the model, and the same text for training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from jinja2.sandbox import ImmutableSandboxedEnvironment

Role = Literal["system", "user", "assistant"]
ChatName = Literal["roles", "turns"]

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

TURNS_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] not in ('system', 'user', 'assistant') %}
{{- raise_exception("role is '" + message['role'] + "', allowed are system, user and assistant") }}
{%- endif %}
{{- message['content'] | trim + '<|endoftext|>' }}
{%- endfor %}
"""


@dataclass(frozen=True)
class ChatFormat:
    """How turns are told apart: the template for the server, and the same marks around each role's content.

    `special_tokens` are the vocabulary's first; `pad` fills short rows, and may be a mark as well: what is
    valid follows from a row's length, never from the id.
    """

    template: str
    opening: Mapping[Role, str]
    closing: Mapping[Role, str]
    special_tokens: tuple[str, ...]
    pad: str


CHAT_FORMATS: dict[ChatName, ChatFormat] = {
    "roles": ChatFormat(
        template=CHAT_TEMPLATE,
        opening=ROLE_TOKENS,
        closing={"system": "", "user": "", "assistant": END},
        special_tokens=SPECIAL_TOKENS,
        pad=PAD,
    ),
    # DialoGPT's: the speakers take turns, a system message is one more, and nothing names them.
    "turns": ChatFormat(
        template=TURNS_TEMPLATE,
        opening={"system": "", "user": "", "assistant": ""},
        closing={"system": END, "user": END, "assistant": END},
        special_tokens=(END,),
        pad=END,
    ),
}
ROLES = CHAT_FORMATS["roles"]


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


def render(messages: Sequence[Message], *, add_generation_prompt: bool, chat: ChatFormat = ROLES) -> str:
    """The template's text of `messages`, as the server renders it; ValueError for an unknown role."""
    environment = ImmutableSandboxedEnvironment()
    template = environment.from_string(chat.template, globals={"raise_exception": _raise})
    turns = [{"role": message.role, "content": message.content} for message in messages]
    return template.render(messages=turns, add_generation_prompt=add_generation_prompt)


def _raise(reason: str) -> NoReturn:
    raise ValueError(reason)


def segments(conversation: Conversation, chat: ChatFormat = ROLES) -> Iterator[tuple[str, bool]]:
    """The pieces of a conversation's text, each with whether the model learns to say it.

    Joined they equal `render`; cut where the tokenizer cuts anyway, so pieces may be encoded one by one.
    """
    for message in conversation.messages:
        content, is_answer = message.content.strip(), message.role == "assistant"
        if conversation.is_plain:
            yield (f" {content}{END}" if is_answer else content), is_answer
            continue
        opening, closed = chat.opening[message.role], content + chat.closing[message.role]
        if is_answer and opening:
            yield opening, False
            yield closed, True
        else:
            yield opening + closed, is_answer

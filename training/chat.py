"""How a conversation becomes text: the template saved with the model, and the same text for training."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NoReturn

from jinja2.sandbox import ImmutableSandboxedEnvironment

Role = Literal["system", "user", "assistant"]
ChatName = Literal["roles", "turns", "chatml"]

END = "<|endoftext|>"
PAD = "<|pad|>"
ROLE_TOKENS: dict[Role, str] = {"system": "<|system|>", "user": "<|user|>", "assistant": "<|assistant|>"}
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"
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

CHATML_TEMPLATE = """\
{%- for message in messages %}
{%- if message['role'] not in ('system', 'user', 'assistant') %}
{{- raise_exception("role is '" + message['role'] + "', allowed are system, user and assistant") }}
{%- endif %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
{{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""


@dataclass(frozen=True)
class ChatFormat:
    """How turns are told apart: the template for the server, and the same marks around each role's content.

    `special_tokens` are the vocabulary's first. `begin` may stand before bare text, `end` ends an answer.
    `pad` fills short rows, and may be a mark as well: what is valid follows from a row's length, never from
    the id.
    """

    template: str
    opening: Mapping[Role, str]
    closing: Mapping[Role, str]
    special_tokens: tuple[str, ...]
    begin: str
    end: str
    pad: str


CHAT_FORMATS: dict[ChatName, ChatFormat] = {
    "roles": ChatFormat(
        template=CHAT_TEMPLATE,
        opening=ROLE_TOKENS,
        closing={"system": "", "user": "", "assistant": END},
        special_tokens=SPECIAL_TOKENS,
        begin=ROLE_TOKENS["user"],
        end=END,
        pad=PAD,
    ),
    # DialoGPT's: the speakers take turns, a system message is one more, and nothing names them.
    "turns": ChatFormat(
        template=TURNS_TEMPLATE,
        opening={"system": "", "user": "", "assistant": ""},
        closing={"system": END, "user": END, "assistant": END},
        special_tokens=(END,),
        begin=END,
        end=END,
        pad=END,
    ),
    # That of SmolLM2, Qwen and many others: what an imported model was tuned on.
    "chatml": ChatFormat(
        template=CHATML_TEMPLATE,
        opening={role: f"{TURN_START}{role}\n" for role in ROLE_TOKENS},
        closing=dict.fromkeys(ROLE_TOKENS, f"{TURN_END}\n"),
        special_tokens=(END, TURN_START, TURN_END),
        begin=TURN_START,
        end=TURN_END,
        pad=END,
    ),
}
ROLES = CHAT_FORMATS["roles"]
ALL_MARKS = frozenset(token for chat in CHAT_FORMATS.values() for token in chat.special_tokens)


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


Piece = tuple[str, bool]  # of a conversation's text, and whether the model learns to say it


def segments(conversation: Conversation, chat: ChatFormat = ROLES) -> Iterator[Piece]:
    """The pieces of a conversation's text, each with whether the model learns to say it.

    Joined they equal `render`; cut where the tokenizer cuts anyway, so pieces may be encoded one by one.
    """
    for message in conversation.messages:
        pieces = _plain_pieces(message, chat) if conversation.is_plain else _pieces(message, chat)
        yield from (piece for piece in pieces if piece[0])


def _pieces(message: Message, chat: ChatFormat) -> tuple[Piece, ...]:
    content = message.content.strip()
    opening, closing = chat.opening[message.role], chat.closing[message.role]
    if message.role != "assistant":
        return ((opening + content + closing, False),)
    return (opening, False), (content + chat.end, True), (closing.removeprefix(chat.end), False)


def _plain_pieces(message: Message, chat: ChatFormat) -> tuple[Piece, ...]:
    content, is_answer = message.content.strip(), message.role == "assistant"
    return ((f" {content}{chat.end}" if is_answer else content, is_answer),)

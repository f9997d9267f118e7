"""From what a client sends to the prompt that the engine reads."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer

from backends.tokenizer.disguise import Disguise
from backends.tokenizer.encoder import PromptEncoder, TokenIds
from backends.tokenizer.errors import PromptError
from backends.tokenizer.evidence import orders_of, with_evidence
from backends.tokenizer.json_input import text_from_bytes
from backends.tokenizer.messages import messages_from_json
from backends.tokenizer.template import BoundedTemplate, OutOfBoundsError, RefusalError
from backends.tokenizer.tools import Message, Tool, tools_from_json, written_out

Parsed = TypeVar("Parsed")
Config = dict[str, object]  # tokenizer_config.json


@dataclass(frozen=True)
class Prompt:
    input_ids: TokenIds  # (N,)
    text: str


class PromptBuilder:
    """Builds prompts for one model; `load_prompt_builder` reads it from a version directory."""

    def __init__(self, encoder: PromptEncoder, template: BoundedTemplate | None, config: Config) -> None:
        self._encoder = encoder
        self._template = template
        self._disguise = Disguise(encoder.control_tokens, template.literals if template else ())
        self._names = special_names(config)
        self._bos = required_bos(encoder, self._names) if config.get("add_bos_token") else None

    def build(
        self,
        text_input: bytes | None = None,
        messages: bytes | None = None,
        tools: bytes | None = None,
        evidence: Sequence[bytes] | None = None,
        num_permutations: int = 1,
        seed: int | None = None,
    ) -> list[Prompt]:
        """One prompt per order of the evidence, the given order first; without evidence there is one.

        Exactly one of `text_input` and `messages` must be there, `tools` only with the latter. Raises
        PromptError.
        """
        if text_input is not None and messages is not None:
            raise PromptError("messages", "given together with text_input; send one of them")
        if tools is not None and messages is None:
            raise PromptError("tools", "given without messages, whose template shows them")
        orders = orders_of(evidence, num_permutations, seed)
        if text_input is not None:
            text = text_from_bytes(text_input, "text_input")
            return [self.from_text(text) for (text,) in with_evidence([text], orders)]
        if messages is not None:
            turns = messages_from_json(messages)
            known_tools = None if tools is None else tools_from_json(tools)
            every = with_evidence([turn["content"] for turn in turns], orders)
            return [self.from_messages(with_contents(turns, contents), known_tools) for contents in every]
        raise PromptError("text_input", "neither text_input nor messages is given; send one of them")

    def from_text(self, text: str) -> Prompt:
        """The text as it is: its author may write control tokens. The first token goes before it, if due."""
        if self._bos is not None and not text.startswith(self._bos):
            text = self._bos + text
        if not text:
            raise PromptError("text_input", "empty; this model needs at least one character")
        return Prompt(self._encoder.encode(self._encoder.with_aliases(text)), text)

    def from_messages(self, messages: list[Message], tools: list[Tool] | None = None) -> Prompt:
        if self._template is not None and not self._template.knows_tools:
            messages, tools = written_out(messages, tools), None
        rendered = self._render(self._disguise.put_on_all(messages), self._disguise.put_on_all(tools))
        ids = self._encoder.encode(self._disguise.take_off(self._encoder.with_aliases(rendered)))
        if not ids.size:
            raise PromptError("messages", "the chat template makes an empty prompt of them")
        return Prompt(ids, self._disguise.take_off(rendered))

    def _render(self, messages: list[Message], tools: list[Tool] | None) -> str:
        if self._template is None:
            raise PromptError("messages", "this model has no chat template; send text_input")
        variables = {"tools": tools, "documents": None, "add_generation_prompt": True, **self._names}
        try:
            return self._template.render(messages=messages, **variables)
        except (RefusalError, OutOfBoundsError) as error:
            raise PromptError("messages", self._disguise.take_off(str(error))) from error
        except Exception as error:
            # The template is the model author's code: whatever it raises, only this request fails.
            raise PromptError("messages", f"the chat template failed: {error!r}", code="internal") from error


def with_contents(messages: list[Message], contents: list[str]) -> list[Message]:
    return [{**message, "content": text} for message, text in zip(messages, contents, strict=True)]


def load_prompt_builder(directory: Path) -> PromptBuilder:
    """Reads tokenizer.json, tokenizer_config.json and, where there is one, chat_template.jinja.

    Raises ValueError that names the file for a broken one, FileNotFoundError for a missing one.
    """
    tokenizer = parsed(directory / "tokenizer.json", Tokenizer.from_str)
    config = parsed(directory / "tokenizer_config.json", json.loads)
    template_file = directory / "chat_template.jinja"
    template = parsed(template_file, BoundedTemplate) if template_file.exists() else None
    return PromptBuilder(PromptEncoder(tokenizer), template, config)


def parsed(file: Path, parse: Callable[[str], Parsed]) -> Parsed:
    try:
        return parse(file.read_text(encoding="utf-8"))
    except OSError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{file.name}: {error}") from error


def special_names(config: Config) -> dict[str, str]:
    """`bos_token` and its like, which templates print; Hugging Face writes them as text or as an object."""
    texts = {
        name: value["content"] if isinstance(value, dict) else value
        for name, value in config.items()
        if name.endswith("_token") and not name.startswith(("add_", "use_"))
    }
    return {name: text for name, text in texts.items() if isinstance(text, str)}


def required_bos(encoder: PromptEncoder, names: dict[str, str]) -> str:
    bos = names.get("bos_token", "")
    if encoder.id_of(bos) is None:
        raise ValueError(f"tokenizer_config.json: add_bos_token is set, but bos_token {bos!r} is no token")
    return bos

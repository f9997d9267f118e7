"""What a request may ask its answer to be: a guide, and the grammar that it stands for."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, StructTag
from llguidance.gbnf_to_lark import gbnf_to_lark

from backends.causal_lm.requests.contract import RequestError

TYPE, GUIDE = "guided_decoding_guide_type", "guided_decoding_guide"
MAX_BYTES = 256 * 1024
MAX_CHOICES = 4096
# One space, or a line break and an indentation: JSON as people write it, and no endless run of white space.
_WHITE_SPACE = r" |\n {0,16}"


@dataclass(frozen=True, slots=True)
class Guide:
    """A form that the answer must have; `grammar` is llguidance's own notation of it."""

    grammar: str

    @classmethod
    def from_contract(cls, kind: str, text: str | None) -> "Guide":
        """Read `guided_decoding_guide_type` and `guided_decoding_guide`; raises RequestError.

        What the grammar itself gets wrong is only found when it is compiled.
        """
        if kind not in _GRAMMARS:
            raise RequestError(TYPE, f"{kind!r:.80} was given, allowed are {', '.join(_GRAMMARS)}")
        if kind == "json" and not text:
            text = '{"type": ["object", "array"]}'
        if not text:
            raise RequestError(GUIDE, f"is needed with the type {kind}")
        size = len(text.encode())
        if size > MAX_BYTES:
            raise RequestError(GUIDE, f"{size} bytes were given, allowed are up to {MAX_BYTES}")
        return cls(_GRAMMARS[kind](text))


def _json_schema(text: str) -> str:
    try:
        return LLMatcher.grammar_from_json_schema(text, overrides={"whitespace_pattern": _WHITE_SPACE})
    except ValueError as error:
        raise RequestError(GUIDE, f"is no JSON schema ({error}); a JSON object is needed") from None


def _choice(text: str) -> str:
    choices = _parsed(text, "a JSON array of strings")
    is_list = isinstance(choices, list) and 1 <= len(choices) <= MAX_CHOICES
    if not is_list or not all(isinstance(choice, str) and choice for choice in choices):
        raise RequestError(GUIDE, f"a JSON array of 1 to {MAX_CHOICES} strings that aren't empty is needed")
    return LLMatcher.grammar_from_lark("start: " + " | ".join(json.dumps(choice) for choice in choices))


def _ebnf(text: str) -> str:
    try:
        return LLMatcher.grammar_from_lark(gbnf_to_lark(text))
    except Exception as error:  # the converter raises whatever it stumbles over
        raise RequestError(GUIDE, f"is not EBNF as llama.cpp writes it: {error!r:.200}") from None


def _structural_tag(text: str) -> str:
    """TensorRT-LLM's form: free text in which each of `structures`, once triggered, is kept to."""
    data = _parsed(text, "a JSON object")
    try:
        triggers = [str(trigger) for trigger in data["triggers"]]
        tags = [_tag(structure, triggers) for structure in data["structures"]]
        return LLMatcher.grammar_from_lark(StructTag.to_grammar(tags, assume_special=False))
    except (KeyError, TypeError, AssertionError, StopIteration):
        raise RequestError(
            GUIDE,
            'is no structural tag; the form is {"triggers": [TEXT], "structures": '
            '[{"begin": TEXT, "schema": SCHEMA, "end": TEXT}]}, where each begin starts with a trigger',
        ) from None


def _tag(structure: Mapping[str, Any], triggers: list[str]) -> StructTag:
    begin, end = str(structure["begin"]), str(structure["end"])
    trigger = next(trigger for trigger in triggers if begin.startswith(trigger))
    return StructTag(trigger=trigger, begin=begin, grammar=dict(structure["schema"]), end=end)


def _parsed(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(GUIDE, f"is not JSON ({error}); {what} is needed") from None


_GRAMMARS: Mapping[str, Callable[[str], str]] = {
    "json": _json_schema,
    "json_schema": _json_schema,
    "regex": LLMatcher.grammar_from_regex,
    "choice": _choice,
    "grammar": LLMatcher.grammar_from_lark,
    "ebnf_grammar": _ebnf,
    "structural_tag": _structural_tag,
}

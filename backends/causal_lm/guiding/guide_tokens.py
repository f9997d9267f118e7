"""A model's tokenizer as llguidance reads it, and the bounds that a guide is compiled under."""

import json
from typing import Any

from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from tokenizers import Tokenizer

# Unicode keeps U+FDD0 to U+FDEF for a program's own use; no prompt can hold them.
_ALIAS = "\ufdd0{}\ufdd1"

LIMITS = LLParserLimits(
    step_lexer_fuel=100_000,
    step_max_items=50_000,
    max_lexer_states=10_000,
    max_grammar_size=200_000,
    verbose_errors=False,
)


def tokenizer_json(tokenizer: Tokenizer) -> str:
    """The tokenizer with its control tokens renamed, so that no text spells one.

    llguidance encodes forced text by this tokenizer: `<|im_end|>` in a schema must stay ten characters.
    """
    data = json.loads(tokenizer.to_str())
    aliases = {
        token["content"]: _ALIAS.format(index)
        for index, token in enumerate(data["added_tokens"])
        if token["special"]
    }
    for token in data["added_tokens"]:
        token["content"] = aliases.get(token["content"], token["content"])
    data["model"]["vocab"] = _renamed(data["model"]["vocab"], aliases)
    data["post_processor"] = None  # it would look for the old names, and only adds tokens to prompts
    return json.dumps(data, ensure_ascii=False)


def compile_guide(text: str, *, tokenizer: LLTokenizer) -> LLMatcher:
    """Compile a grammar as far as its first token; what is wrong with it is in `get_error()`."""
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=LIMITS)
    if not matcher.is_error():
        matcher.compute_bitmask()
    return matcher


def _renamed(vocabulary: Any, aliases: dict[str, str]) -> Any:
    """BPE and WordPiece map token to id, Unigram lists tokens with their scores."""
    if isinstance(vocabulary, dict):
        return {aliases.get(token, token): token_id for token, token_id in vocabulary.items()}
    return [[aliases.get(token, token), score] for token, score in vocabulary]

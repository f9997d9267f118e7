"""Text → token ids, where a control token is one only if someone entitled wrote it."""

import numpy as np
import numpy.typing as npt
from tokenizers import AddedToken, Tokenizer

from backends.tokenizer.disguise import any_of
from backends.tokenizer.json_input import RESERVED_FIRST

OPEN, CLOSE = chr(RESERVED_FIRST), chr(RESERVED_FIRST + 1)

TokenIds = npt.NDArray[np.int32]


class PromptEncoder:
    """A tokenizer in which control tokens go by aliases that no client can write.

    The tokenizer's own matching of control tokens is off: `<|im_end|>` is ten characters, until
    `with_aliases` replaces it in a text that may hold control tokens.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        tokenizer.encode_special_tokens = True  # tokenizers' name for "as ordinary text"
        added = tokenizer.get_added_tokens_decoder().items()
        special = {token_id: token for token_id, token in added if token.special}
        self.control_tokens = tuple(token.content for token in special.values())
        aliases = [alias_of(token, index) for index, token in enumerate(special.values())]
        tokenizer.add_tokens(aliases)
        self._tokenizer = tokenizer
        self._alias_of = dict(zip(self.control_tokens, (alias.content for alias in aliases), strict=True))
        self._pattern = any_of(self.control_tokens)
        highest = max(tokenizer.get_vocab(with_added_tokens=True).values())
        self._real_ids = np.arange(highest + 1, dtype=np.int32)
        for token_id, alias in zip(special, aliases, strict=True):
            self._real_ids[tokenizer.token_to_id(alias.content)] = token_id

    def with_aliases(self, text: str) -> str:
        return self._pattern.sub(lambda found: self._alias_of[found[0]], text)

    def encode(self, aliased: str) -> TokenIds:
        """Token ids of a text whose control tokens have been replaced by aliases, (N,)."""
        ids = self._tokenizer.encode(aliased, add_special_tokens=False).ids
        return self._real_ids[np.asarray(ids, dtype=np.int64)]

    def id_of(self, token: str) -> int | None:
        found: int | None = self._tokenizer.token_to_id(token)
        return found


def alias_of(token: AddedToken, index: int) -> AddedToken:
    """A token that is matched where the real one would be, spaces beside it included."""
    return AddedToken(
        f"{OPEN}{index}{CLOSE}",
        lstrip=token.lstrip,
        rstrip=token.rstrip,
        single_word=token.single_word,
        normalized=False,
        special=False,
    )

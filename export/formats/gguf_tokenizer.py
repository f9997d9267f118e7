"""A GGUF file's vocabulary, byte-level BPE or SentencePiece, as a `tokenizers` Tokenizer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from export.errors import ExportError
from export.formats.imported import TokenizerFiles
from export.formats.sentencepiece_bpe import CONTROL, USER_DEFINED, sentencepiece_tokenizer
from export.manifest import SpecialTokens

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _gpt2() -> PreTokenizer:
    return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)


def _smollm() -> PreTokenizer:
    return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), _gpt2()])


def _llama3() -> PreTokenizer:
    split = pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


class Splitting(NamedTuple):
    """How text is cut before merging, and what a file leaves unsaid because its kind implies it."""

    pre_tokenizer: PreTokenizer
    ignore_merges: bool = False
    adds_bos: bool = False


# By `tokenizer.ggml.pre`; the file names the cutting but does not carry it.
SPLITTINGS: dict[str, Splitting] = {
    "gpt-2": Splitting(_gpt2()),
    "smollm": Splitting(_smollm()),
    "llama-bpe": Splitting(_llama3(), ignore_merges=True, adds_bos=True),
}


def splitting_from_metadata(metadata: Mapping[str, Any]) -> Splitting:
    """The cutting that the file names; ExportError lists the known ones."""
    name = metadata.get("tokenizer.ggml.pre")
    if name not in SPLITTINGS:
        raise ExportError(f"tokenizer.ggml.pre is {name!r}; supported are {', '.join(sorted(SPLITTINGS))}")
    return SPLITTINGS[name]


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a file's metadata describes; ids are those of the file.

    `metadata` maps GGUF keys to plain values. Raises ExportError for another kind of vocabulary.
    """
    kind = metadata.get("tokenizer.ggml.model")
    if kind not in KINDS:
        raise ExportError(f"tokenizer.ggml.model is {kind!r}; supported are {', '.join(sorted(KINDS))}")
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    if len(set(tokens)) != len(tokens):
        raise ExportError(
            f"tokenizer.ggml.tokens holds {len(tokens) - len(set(tokens))} duplicates; every id needs its own"
        )
    if len(types) != len(tokens):
        raise ExportError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    return KINDS[kind].build(metadata)


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    splitting = splitting_from_metadata(metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
    if lost := [merge for merge in merges if not {*merge, "".join(merge)} <= vocab.keys()]:
        raise ExportError(f"tokenizer.ggml.merges holds {' '.join(lost[0])!r}, which makes no token")
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges, ignore_merges=splitting.ignore_merges))
    tokenizer.pre_tokenizer = splitting.pre_tokenizer
    tokenizer.decoder = decoders.ByteLevel()
    types: list[int] = metadata["tokenizer.ggml.token_type"]
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind == CONTROL, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def _sentencepiece(metadata: Mapping[str, Any]) -> Tokenizer:
    tokens, scores = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.scores"]
    if len(scores) != len(tokens):
        raise ExportError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    return sentencepiece_tokenizer(
        tokens,
        scores,
        metadata["tokenizer.ggml.token_type"],
        adds_space=metadata.get("tokenizer.ggml.add_space_prefix", True),
    )


class Kind(NamedTuple):
    """How a vocabulary of this kind is built, and whether texts begin with `bos` where the file is silent."""

    build: Callable[[Mapping[str, Any]], Tokenizer]
    adds_bos: Callable[[Mapping[str, Any]], bool]


# By `tokenizer.ggml.model`.
KINDS: dict[str, Kind] = {
    "gpt2": Kind(_byte_level, lambda metadata: splitting_from_metadata(metadata).adds_bos),
    "llama": Kind(_sentencepiece, lambda _: True),
}


def _pair(merge: str) -> tuple[str, str]:
    left, separator, right = merge.partition(" ")
    if not separator or not left or not right:
        raise ExportError(
            f"tokenizer.ggml.merges holds {merge!r}; a merge is two pieces with a space between"
        )
    return left, right


def special_tokens_from_metadata(metadata: Mapping[str, Any]) -> SpecialTokens:
    """Ids of begin, end (of text, turn or message) and padding; ExportError if no end is named."""
    ends = [metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    eos = tuple(dict.fromkeys(end for end in ends if end is not None))
    for index in (
        *eos,
        metadata.get("tokenizer.ggml.bos_token_id"),
        metadata.get("tokenizer.ggml.padding_token_id"),
    ):
        if index is not None and not 0 <= index < len(metadata["tokenizer.ggml.tokens"]):
            raise ExportError(f"a special token has the id {index}, which is no token")
    if not eos:
        raise ExportError("tokenizer.ggml.eos_token_id is missing: without an end token no answer would end")
    return SpecialTokens(
        bos=metadata.get("tokenizer.ggml.bos_token_id"),
        eos=eos,
        pad=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def tokenizer_files_from_metadata(metadata: Mapping[str, Any]) -> TokenizerFiles:
    """The three files in Hugging Face's form, with the chat template beside the configuration."""
    tokenizer = tokenizer_from_metadata(metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = special_tokens_from_metadata(metadata)
    named = {"bos_token": special.bos, "eos_token": special.eos[0], "pad_token": special.pad}
    config: dict[str, object] = {
        "add_bos_token": metadata.get(
            "tokenizer.ggml.add_bos_token", KINDS[metadata["tokenizer.ggml.model"]].adds_bos(metadata)
        ),
        **{name: None if index is None else tokens[index] for name, index in named.items()},
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return TokenizerFiles(
        tokenizer=tokenizer.to_str(),
        config=config,
        chat_template=metadata.get("tokenizer.chat_template"),
    )

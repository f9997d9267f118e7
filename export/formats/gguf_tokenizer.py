"""A GGUF file's vocabulary, byte-level BPE or SentencePiece, as a `tokenizers` Tokenizer."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeVar

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from export.errors import ExportError
from export.formats.fields import Fields
from export.formats.imported import TokenizerFiles
from export.formats.sentencepiece_bpe import CONTROL, USER_DEFINED, sentencepiece_tokenizer
from export.manifest import SpecialTokens

T = TypeVar("T", str, int, float)

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
    tokens = _array(metadata, "tokenizer.ggml.tokens", str)
    types = _array(metadata, "tokenizer.ggml.token_type", int)
    if len(set(tokens)) != len(tokens):
        raise ExportError(
            f"tokenizer.ggml.tokens holds {len(tokens) - len(set(tokens))} duplicates; every id needs its own"
        )
    if len(types) != len(tokens):
        raise ExportError(f"tokenizer.ggml.token_type has {len(types)} entries for {len(tokens)} tokens")
    return KINDS[kind].build(metadata)


def _array(metadata: Mapping[str, Any], key: str, kind: type[T]) -> list[T]:
    values = metadata.get(key)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ExportError(f"{key} is {'missing' if values is None else 'no array of ' + kind.__name__}")
    return values


def _byte_level(metadata: Mapping[str, Any]) -> Tokenizer:
    splitting = splitting_from_metadata(metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [_pair(merge) for merge in _array(metadata, "tokenizer.ggml.merges", str)]
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
    tokens, scores = metadata["tokenizer.ggml.tokens"], _array(metadata, "tokenizer.ggml.scores", float)
    if len(scores) != len(tokens):
        raise ExportError(f"tokenizer.ggml.scores has {len(scores)} entries for {len(tokens)} tokens")
    return sentencepiece_tokenizer(
        tokens,
        scores,
        metadata["tokenizer.ggml.token_type"],
        adds_space=Fields(metadata, "its metadata").flag("tokenizer.ggml.add_space_prefix", True),
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
    fields, count = Fields(metadata, "its metadata"), len(metadata["tokenizer.ggml.tokens"])
    names = ("bos", "padding", "eos", "eot", "eom")
    bos, pad, *ends = (_special(fields, f"tokenizer.ggml.{name}_token_id", count) for name in names)
    eos = tuple(dict.fromkeys(end for end in ends if end is not None))
    if not eos:
        raise ExportError("tokenizer.ggml.eos_token_id is missing: without an end token no answer would end")
    return SpecialTokens(bos=bos, eos=eos, pad=pad)


def _special(fields: Fields, name: str, count: int) -> int | None:
    index = fields.integer(name) if name in fields else None
    if index is not None and not 0 <= index < count:
        raise ExportError(f"{name} is {index}, which is no token; they go from 0 to {count - 1}")
    return index


def tokenizer_files_from_metadata(metadata: Mapping[str, Any]) -> TokenizerFiles:
    """The three files in Hugging Face's form, with the chat template beside the configuration."""
    tokenizer, fields = tokenizer_from_metadata(metadata), Fields(metadata, "its metadata")
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = special_tokens_from_metadata(metadata)
    named = {"bos_token": special.bos, "eos_token": special.eos[0], "pad_token": special.pad}
    config: dict[str, object] = {
        "add_bos_token": fields.flag(
            "tokenizer.ggml.add_bos_token", KINDS[metadata["tokenizer.ggml.model"]].adds_bos(metadata)
        ),
        **{name: None if index is None else tokens[index] for name, index in named.items()},
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return TokenizerFiles(
        tokenizer=tokenizer.to_str(),
        config=config,
        chat_template=fields.text("tokenizer.chat_template") if "tokenizer.chat_template" in fields else None,
    )

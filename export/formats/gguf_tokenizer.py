"""A GGUF file's byte-level BPE vocabulary as a `tokenizers` Tokenizer."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import PreTokenizer

from export.errors import ExportError
from export.formats.imported import TokenizerFiles
from export.manifest import SpecialTokens

CONTROL, USER_DEFINED = 3, 4  # tokenizer.ggml.token_type

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
    kind, name = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2":
        raise ExportError(
            f"tokenizer.ggml.model is {kind!r}; supported is 'gpt2', byte-level BPE: "
            "convert the model with its tokenizer.json to a Trident checkpoint instead"
        )
    if name not in SPLITTINGS:
        raise ExportError(f"tokenizer.ggml.pre is {name!r}; supported are {', '.join(sorted(SPLITTINGS))}")
    return SPLITTINGS[name]


def tokenizer_from_metadata(metadata: Mapping[str, Any]) -> Tokenizer:
    """The tokenizer that a file's metadata describes; ids are those of the file.

    `metadata` maps GGUF keys to plain values. Raises ExportError for another kind of vocabulary.
    """
    splitting = splitting_from_metadata(metadata)
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    vocab = {token: index for index, token in enumerate(tokens)}
    if len(vocab) != len(tokens):
        raise ExportError(
            f"tokenizer.ggml.tokens holds {len(tokens) - len(vocab)} duplicates; every id needs its own"
        )
    merges = [_pair(merge) for merge in metadata["tokenizer.ggml.merges"]]
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
    if not eos:
        raise ExportError("tokenizer.ggml.eos_token_id is missing: without an end token no answer would end")
    return SpecialTokens(
        bos=metadata.get("tokenizer.ggml.bos_token_id"),
        eos=eos,
        pad=metadata.get("tokenizer.ggml.padding_token_id"),
    )


def tokenizer_files_from_metadata(metadata: Mapping[str, Any]) -> TokenizerFiles:
    """The three files in Hugging Face's form, with the chat template beside the configuration."""
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    special = special_tokens_from_metadata(metadata)
    named = {"bos_token": special.bos, "eos_token": special.eos[0], "pad_token": special.pad}
    config: dict[str, object] = {
        "add_bos_token": metadata.get(
            "tokenizer.ggml.add_bos_token", splitting_from_metadata(metadata).adds_bos
        ),
        **{name: None if index is None else tokens[index] for name, index in named.items()},
        "clean_up_tokenization_spaces": False,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    return TokenizerFiles(
        tokenizer=tokenizer_from_metadata(metadata).to_str(),
        config=config,
        chat_template=metadata.get("tokenizer.chat_template"),
    )

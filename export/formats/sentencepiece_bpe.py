"""SentencePiece's byte-pair encoding as a `tokenizers` Tokenizer, from pieces and their scores."""

from collections.abc import Iterator, Mapping, Sequence

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

NORMAL, UNKNOWN, CONTROL, USER_DEFINED = 1, 2, 3, 4  # SentencePiece's types; GGUF numbers them alike
SPACE = "▁"
LONGEST_PIECE = 256


def sentencepiece_tokenizer(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, adds_space: bool
) -> Tokenizer:
    """The tokenizer of pieces by id; `adds_space` puts a space before a text.

    SentencePiece merges the neighbours whose union scores highest; `tokenizers` wants pairs in that order.
    """
    vocab = {token: index for index, token in enumerate(tokens)}
    unknown = next((token for token, kind in zip(tokens, types, strict=True) if kind == UNKNOWN), None)
    mergeable = {
        token: score
        for token, score, kind in zip(tokens, scores, types, strict=True)
        if kind == NORMAL and len(token) <= LONGEST_PIECE
    }
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=merges_by_score(mergeable, vocab),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    scheme = "first" if adds_space else "never"
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme=scheme, split=False)
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, *([decoders.Strip(" ", 1, 0)] if adds_space else [])])
    tokenizer.add_tokens(
        [
            AddedToken(token, special=kind != USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, types, strict=True)
            if kind in (UNKNOWN, CONTROL, USER_DEFINED)
        ]
    )
    return tokenizer


def merges_by_score(scores: Mapping[str, float], vocab: Mapping[str, int]) -> list[tuple[str, str]]:
    """All pairs of pieces that make a piece, those of higher score first."""
    return sorted(_pairs(scores), key=lambda pair: (-scores["".join(pair)], vocab[pair[0]], vocab[pair[1]]))


def _pairs(scores: Mapping[str, float]) -> Iterator[tuple[str, str]]:
    for piece in scores:
        for cut in range(1, len(piece)):
            if piece[:cut] in scores and piece[cut:] in scores:
                yield piece[:cut], piece[cut:]

"""How far a graph's logits are from a reference's: step by step, and in perplexity on held-out text."""

from pydoc_data.topics import topics
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from polygraphy.comparator import Comparator, IterationResult, RunResults, SimpleCompareFunc
from polygraphy.logger import G_LOGGER
from tokenizers import Tokenizer

from export.comparison import Perplexity, Scenario
from export.errors import ExportError
from export.graph_session import GraphSession, Logits, Tokens
from export.scenarios import Run
from export.tolerances import Tolerance

# (windows, tokens each) of held-out text; few where attention reads the whole cache, full or not.
FUSED_WINDOWS, STANDARD_WINDOWS = (8, 256), (2, 64)
LEAST_TOKENS = 33  # of held-out text: fewer say nothing about quality
LEAST_LENGTH = 128  # of the context, so that every scenario fits
DEFAULT_TEXT = "Python's documentation"


class Reference(Protocol):
    """What a graph is held to: a model over full sequences, without state or cache."""

    @property
    def max_length(self) -> int:
        """The context, in tokens."""
        ...

    def logits(self, tokens: list[int] | Tokens) -> Logits:
        """Logits (T, V) after each of `tokens` (T,)."""
        ...


def require_length(max_length: int) -> None:
    """ExportError for a context in which not every scenario fits."""
    if max_length < LEAST_LENGTH:
        raise ExportError(
            f"a context of {max_length} tokens is too short to compare: the least is {LEAST_LENGTH}"
        )


def text_tokens(tokenizer: str, text: str | None) -> Tokens:
    """`text` as tokens of the tokenizer.json given, or else text that every installation has."""
    text = "\n".join(topics[name] for name in sorted(topics)) if text is None else text
    tokens = np.array(Tokenizer.from_str(tokenizer).encode(text, add_special_tokens=False).ids, np.int64)
    if tokens.size < LEAST_TOKENS:
        raise ExportError(f"the held-out text has {tokens.size} tokens, at least {LEAST_TOKENS} are needed")
    return tokens


def compare_scenario(name: str, run: Run, reference: Reference, tolerance: Tolerance) -> Scenario:
    """Every observation of `run` against the reference's logits at the same place."""
    expected = [reference.logits(tokens) for tokens in run.sequences]
    ours = np.stack([observation.logits for observation in run.observations])
    theirs = np.stack([expected[o.sequence][o.length - 1] for o in run.observations])
    errors, spread = np.abs(ours - theirs), float(theirs.std())
    limit = tolerance.limit if tolerance.stat == "max" else tolerance.limit * spread
    return Scenario(
        name=name,
        steps=len(run.observations),
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        logit_spread=spread,
        top1_agreement=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        stat=tolerance.stat,
        limit=limit,
        passed=is_within(ours, theirs, tolerance.stat, limit),
    )


def is_within(ours: Logits, theirs: Logits, stat: str, limit: float) -> bool:
    """Polygraphy's verdict: on the worst number of all steps if `stat` is "max", on the mean if "mean"."""
    results = RunResults()
    for name, logits in (("graph", ours), ("reference", theirs)):
        # As one array: step by step it would print each one's figures, which nobody reads, for seconds.
        whole = {"logits": np.ascontiguousarray(logits)}
        results.append((name, [IterationResult(outputs=whole, runner_name=name)]))
    check = SimpleCompareFunc(atol=limit, rtol=0, check_error_stat=stat)
    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):  # the numbers are reported once, by us
        return bool(Comparator.compare_accuracy(results, compare_func=check))


def measure_perplexity(
    graph: GraphSession, reference: Reference, text: Tokens, *, name: str, tolerance: Tolerance
) -> Perplexity:
    """Perplexity of windows spread over `text`, decoded by the graph as one batch, one token at a time."""
    count, length = FUSED_WINDOWS if graph.is_fused else STANDARD_WINDOWS
    windows = cut_windows(text, count, min(length, reference.max_length))
    inputs, targets = windows[:, :-1], windows[:, 1:]  # (B, T)
    slots, ours = graph.slots(len(inputs)), []
    for position, tokens in enumerate(inputs.T):
        logits = graph.decode(slots, tokens, np.full(len(tokens), position))
        ours.append(_score(logits, targets[:, position]))
    losses, choices = (np.stack(part, axis=1) for part in zip(*ours, strict=True))
    scored = [_score(reference.logits(row), target) for row, target in zip(inputs, targets, strict=True)]
    true_losses, true_choices = (np.stack(part) for part in zip(*scored, strict=True))
    perplexity, true_perplexity = float(np.exp(losses.mean())), float(np.exp(true_losses.mean()))
    ratio = perplexity / true_perplexity
    return Perplexity(
        text=name,
        tokens=targets.size,
        reference=true_perplexity,
        graph=perplexity,
        ratio=ratio,
        top1_agreement=float((choices == true_choices).mean()),
        limit=tolerance.perplexity_ratio,
        passed=ratio <= tolerance.perplexity_ratio,
    )


def cut_windows(text: Tokens, count: int, length: int) -> Tokens:
    """Up to `count` windows (B, T + 1) of `text`, evenly spread, none overlapping another."""
    span = min(length, text.size - 1) + 1
    count = min(count, text.size // span)
    starts = np.arange(count) * (text.size // count)
    return np.stack([text[start : start + span] for start in starts])


def _score(logits: Logits, targets: Tokens) -> tuple[NDArray[np.float64], Tokens]:
    """Negative log-likelihood (N,) of `targets` under `logits` (N, V), and the likeliest token (N,)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=-1, keepdims=True)
    chosen = wide[np.arange(len(targets)), targets]
    np.exp(wide, out=wide)
    return np.log(wide.sum(axis=-1)) - chosen, logits.argmax(axis=-1)

"""Compares what a graph tells of itself beside the logits with the PyTorch decoder it came from."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from export.compare import held_out_tokens
from export.comparison import Figure
from export.formats.imported import ImportedModel
from export.graph_session import GraphSession, Tokens
from export.measurement import is_within
from export.tolerances import Tolerance
from training.decoder import Decoder

CHUNKS = (1, 32, 7)
LENGTHS = (5, 17, 40)  # of the rows that are decoded as one batch
DECODE_STEPS = 32


class Told(NamedTuple):
    """The graph's figures (F,) after the first `length` tokens of sequence number `sequence`."""

    sequence: int
    length: int
    figures: NDArray[np.float32]


def compare_figures(graph: GraphSession, model: ImportedModel, tolerance: Tolerance) -> list[Figure]:
    """Every figure of the graph, in chunks of a prompt and in a ragged batch, against full sequences."""
    text = held_out_tokens(model)
    length = max(LENGTHS) + DECODE_STEPS
    sequences = np.stack([np.resize(text[start:], length) for start in range(len(LENGTHS))])
    told = [*in_chunks(graph, sequences[0]), *in_a_batch(graph, sequences)]
    reference = figures_of(model.decoder.eval(), sequences, graph.figures)
    ours = np.stack([one.figures for one in told])  # (N, F)
    theirs = np.stack([reference[one.sequence, one.length - 1] for one in told])
    return [
        compare_figure(name, ours[:, column], theirs[:, column], tolerance)
        for column, name in enumerate(graph.figures)
    ]


def in_chunks(graph: GraphSession, tokens: Tokens) -> Iterator[Told]:
    """The first sequence, each chunk onto the state of those before."""
    slots, start = graph.slots(1), 0
    for size in CHUNKS:
        graph.prefill(slots, 0, tokens[start : start + size], start)
        start += size
        yield Told(0, start, row_of(graph, 0))


def in_a_batch(graph: GraphSession, sequences: Tokens) -> Iterator[Told]:
    """Rows of different lengths, prefilled one by one and decoded together."""
    slots = graph.slots(len(LENGTHS))
    for row, length in enumerate(LENGTHS):
        graph.prefill(slots, row, sequences[row, :length])
        yield Told(row, length, row_of(graph, 0))
    ends = np.array(LENGTHS)
    for _ in range(DECODE_STEPS):
        graph.decode(slots, np.take_along_axis(sequences, ends[:, None], axis=1)[:, 0], ends)
        ends += 1
        for row, length in enumerate(ends.tolist()):
            yield Told(row, length, row_of(graph, row))


def row_of(graph: GraphSession, row: int) -> NDArray[np.float32]:
    """What the last call told of one row, (F,)."""
    return np.array([graph.told[name][row] for name in graph.figures])


def figures_of(decoder: Decoder, tokens: Tokens, names: tuple[str, ...]) -> NDArray[np.float32]:
    """The decoder's figures (B, T, F) after each of `tokens` (B, T)."""
    extras: dict[str, torch.Tensor] = {}
    with torch.inference_mode():
        decoder(torch.from_numpy(tokens), extras=extras)
    return np.stack([extras[name].float().numpy() for name in names], axis=-1)


def compare_figure(
    name: str, ours: NDArray[np.float32], theirs: NDArray[np.float32], tolerance: Tolerance
) -> Figure:
    """One figure over all steps (N,)."""
    errors, largest = np.abs(ours - theirs), float(np.abs(theirs).max())
    limit = tolerance.figure_share * largest
    return Figure(
        name=name,
        steps=len(ours),
        max_error=float(errors.max()),
        mean_error=float(errors.mean()),
        largest=largest,
        stat=tolerance.stat,
        limit=limit,
        passed=is_within(ours[:, None], theirs[:, None], tolerance.stat, limit),
    )

"""The ways in which the engine runs a graph, each tried on real tokens."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from export.graph_session import GraphSession, Logits, Tokens

PREFILL_LENGTHS = (1, 7, 63)
CHUNKS = (1, 32, 7, 56)
DECODE_STEPS = 64
RAGGED_PROMPTS = (1, 5, 17, 40)
RAGGED_STEPS = 8
DRAFTED_AFTER, DRAFT = 20, 9
# The longest sequence of any scenario; a model with a shorter context gets what fits.
LONGEST = sum(CHUNKS)


class Observation(NamedTuple):
    """The graph's logits (V,) after the first `length` tokens of sequence number `sequence`."""

    sequence: int
    length: int
    logits: Logits


@dataclass
class Run:
    """What a scenario fed to the graph and what came back."""

    sequences: list[list[int]] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)

    def begin(self, tokens: Tokens) -> int:
        """Note a new sequence that starts with `tokens`; its number."""
        self.sequences.append(tokens.tolist())
        return len(self.sequences) - 1

    def observe(self, sequence: int, logits: Logits, length: int | None = None) -> None:
        """Note the logits after `length` tokens of a sequence (default: after all it has so far)."""
        length = len(self.sequences[sequence]) if length is None else length
        self.observations.append(Observation(sequence, length, logits.copy()))

    def extend(self, sequence: int, token: int) -> int:
        """Append a token to a sequence; its position."""
        self.sequences[sequence].append(token)
        return len(self.sequences[sequence]) - 1


def full_prefill(graph: GraphSession, text: Tokens) -> Run:
    """Whole prompts in one call."""
    run = Run()
    for length in PREFILL_LENGTHS:
        prompt = text[:length]
        run.observe(run.begin(prompt), graph.prefill(graph.slots(1), 0, prompt))
    return run


def chunked_prefill(graph: GraphSession, text: Tokens) -> Run:
    """One prompt in chunks of different lengths, each onto the state of those before."""
    run, slots, start = Run(), graph.slots(1), 0
    prompt = text[: sum(CHUNKS)]
    sequence = run.begin(prompt)
    for length in CHUNKS:
        chunk = prompt[start : start + length]
        if chunk.size:
            logits = graph.prefill(slots, 0, chunk, start)
            start += chunk.size
            run.observe(sequence, logits, start)
    return run


def greedy_decode(graph: GraphSession, text: Tokens) -> Run:
    """A prompt, then 64 tokens that the graph itself chooses."""
    run = Run()
    _continue(graph, run, [text[:16]], min(DECODE_STEPS, text.size - 16))
    return run


def ragged_batch(graph: GraphSession, text: Tokens) -> Run:
    """Rows of different lengths, prefilled one by one and decoded as one batch."""
    run = Run()
    prompts = [text[start : start + length] for start, length in enumerate(RAGGED_PROMPTS)]
    _continue(graph, run, prompts, RAGGED_STEPS)
    return run


def _continue(graph: GraphSession, run: Run, prompts: list[Tokens], steps: int) -> None:
    """Prefill each prompt in a row of its own, then decode all rows together, greedily."""
    slots = graph.slots(len(prompts))
    sequences = [run.begin(prompt) for prompt in prompts]
    logits = np.stack([graph.prefill(slots, row, prompt) for row, prompt in enumerate(prompts)])
    for _ in range(steps):
        for sequence, row in zip(sequences, logits, strict=True):
            run.observe(sequence, row)
        chosen = logits.argmax(axis=-1)
        positions = [run.extend(s, int(token)) for s, token in zip(sequences, chosen, strict=True)]
        logits = graph.decode(slots, chosen, np.array(positions))


def slot_reuse(graph: GraphSession, text: Tokens) -> Run:
    """A short sequence in a row that a longer one has left: nothing of it may come through."""
    run, slots = Run(), graph.slots(1)
    graph.prefill(slots, 0, text[::-1].copy())
    slots.reuse(0)
    sequence = run.begin(text[:9])
    logits = graph.prefill(slots, 0, text[:9])
    for token in text[9:17]:
        run.observe(sequence, logits)
        position = run.extend(sequence, int(token))
        logits = graph.decode(slots, np.array([token]), np.array([position]))[0]
    return run


def padded_prefill(graph: GraphSession, text: Tokens) -> Run:
    """Prompts of different lengths in one padded batch, then chunks onto them; the standard graph only."""
    run, slots = Run(), graph.slots(len(RAGGED_PROMPTS))
    starts = np.zeros(len(RAGGED_PROMPTS), np.int64)
    sequences = [run.begin(text[row : row + 2 * length]) for row, length in enumerate(RAGGED_PROMPTS)]
    for _ in range(2):
        lengths = np.array(RAGGED_PROMPTS)
        tokens = np.zeros((lengths.size, lengths.max()), np.int64)
        for row, (start, length) in enumerate(zip(starts, lengths, strict=True)):
            tokens[row, :length] = run.sequences[row][start : start + length]
        positions = starts[:, None] + np.arange(tokens.shape[1])
        logits = graph.append(slots, 0, tokens, positions, lengths)
        starts += lengths
        for sequence, row_logits, start in zip(sequences, logits, starts, strict=True):
            run.observe(sequence, row_logits, int(start))
    return run


def token_by_token(graph: GraphSession, text: Tokens) -> Run:
    """Given tokens one at a time; with tokens that reach every expert, each expert is compared."""
    run, slots = Run(), graph.slots(1)
    sequence = run.begin(text)
    for position, token in enumerate(text):
        logits = graph.decode(slots, np.array([token]), np.array([position]))
        run.observe(sequence, logits[0], position + 1)
    return run


def verified_drafts(graph: GraphSession, text: Tokens) -> Run:
    """Several tokens onto a prompt with logits at each, as drafts of an answer are verified.

    The second draft takes the place of the first, of whose tokens only one was right.
    """
    run, slots = Run(), graph.slots(1)
    prompt, tokens = text[:DRAFTED_AFTER], text[DRAFTED_AFTER : DRAFTED_AFTER + DRAFT]
    graph.prefill(slots, 0, prompt)
    states = zip(slots.specs, slots.rows(0, 1), strict=True)
    recurrent = [array for spec, array in states if spec.kind == "recurrent"]  # a cache is only read so far
    before = [array.copy() for array in recurrent]
    graph.verify(slots, 0, np.concatenate([tokens[:1], tokens[:0:-1]]), len(prompt))
    for array, saved in zip(recurrent, before, strict=True):
        array[...] = saved
    sequence = run.begin(np.concatenate([prompt, tokens]))
    for place, logits in enumerate(graph.verify(slots, 0, tokens, len(prompt))):
        run.observe(sequence, logits, len(prompt) + place + 1)
    return run


SCENARIOS: dict[str, Callable[[GraphSession, Tokens], Run]] = {
    "full prefill": full_prefill,
    "chunked prefill": chunked_prefill,
    "greedy decode": greedy_decode,
    "ragged batch": ragged_batch,
    "slot reuse": slot_reuse,
    "verified drafts": verified_drafts,
}

"""Compares an exported graph with the PyTorch decoder it came from, in every way the engine will run it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from export.comparison import Experts, Perplexity, Scenario
from export.formats.imported import ImportedModel
from export.graph_session import GraphSession, Logits, Tokens
from export.measurement import (
    DEFAULT_TEXT,
    compare_scenario,
    measure_perplexity,
    require_length,
    text_tokens,
)
from export.scenarios import LONGEST, SCENARIOS, padded_prefill, token_by_token
from export.tolerances import Tolerance
from training.decoder import Decoder

EXPERT_TOKENS = 256


@dataclass(frozen=True)
class Reference:
    """The decoder in float32, over full sequences: the form it was trained in, without state or cache."""

    decoder: Decoder

    @property
    def max_length(self) -> int:
        """The context, in tokens."""
        return self.decoder.config.max_length

    def logits(self, tokens: list[int] | Tokens) -> Logits:
        """Logits (T, V) after each of `tokens` (T,)."""
        with torch.inference_mode():
            logits, _ = self.decoder(torch.as_tensor(tokens)[None])
        values: Logits = logits[0].numpy()
        return values


def compare_graph(
    graph: GraphSession, model: ImportedModel, *, tolerance: Tolerance, report: Callable[[str], None]
) -> tuple[list[Scenario], Perplexity, Experts | None]:
    """Run every scenario and measure perplexity on held-out text.

    `report` is told what runs now. Raises ExportError for a context or a text too short to compare on.
    """
    decoder, text = model.decoder.eval(), held_out_tokens(model)
    require_length(decoder.config.max_length)
    reference, scenarios = Reference(decoder), []
    runs = SCENARIOS if graph.is_fused else SCENARIOS | {"padded prefill": padded_prefill}
    for name, scenario in runs.items():
        report(name)
        run = scenario(graph, np.resize(text, LONGEST))
        scenarios.append(compare_scenario(name, run, reference, tolerance))
    experts = None
    if "moe" in decoder.config.ffns:
        report("every expert")
        tokens, experts = tokens_for_experts(decoder, text)
        run = token_by_token(graph, tokens)
        scenarios.append(compare_scenario("every expert", run, reference, tolerance))
    report("perplexity")
    name = DEFAULT_TEXT if model.held_out is None else "the model's own held-out text"
    return scenarios, measure_perplexity(graph, reference, text, name=name, tolerance=tolerance), experts


def held_out_tokens(model: ImportedModel) -> Tokens:
    """The model's own held-out text as tokens, or else text that every installation has."""
    return text_tokens(model.tokenizer.tokenizer, model.held_out)


def tokens_for_experts(decoder: Decoder, text: Tokens) -> tuple[Tokens, Experts]:
    """The shortest of a few prefixes of text and random tokens that reaches every expert that any reaches."""
    config = decoder.config
    length = min(EXPERT_TOKENS, config.max_length)
    random = np.random.default_rng(0).integers(config.vocab_size, size=length)
    tokens = np.where(np.arange(length) % 2, random, np.resize(text, length))
    routing: list[torch.Tensor] = []
    with torch.inference_mode():
        decoder(torch.from_numpy(tokens)[None], routing=routing)
    chosen = torch.stack(
        [logits[0].topk(config.experts_per_token).indices for logits in routing]
    )  # (L, T, k)
    first = [
        int((chosen[layer] == expert).any(-1).nonzero()[0])
        for layer in range(len(routing))
        for expert in range(config.num_experts)
        if (chosen[layer] == expert).any()
    ]
    return tokens[: max(first) + 1], Experts(reached=len(first), total=len(routing) * config.num_experts)

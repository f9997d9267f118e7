"""Proves that a foreign decoder says to the engine what it says by itself. A process of its own runs it.

`python -m export.decoder_proof` reads a Request, prints a Proof, and has a limit of memory.
"""

import resource
import sys
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from export.comparison import Perplexity, Scenario
from export.errors import ExportError
from export.graph_session import GraphSession
from export.manifest import Precision, StateTensor
from export.measurement import DEFAULT_TEXT, compare_scenario, measure_perplexity, require_length, text_tokens
from export.plain_decoder import PlainDecoder, Signature, require_finite
from export.proof_process import limit_memory, prove_apart
from export.scenarios import LONGEST, SCENARIOS
from export.tolerances import TOLERANCES

SECONDS, SECONDS_PER_MEGABYTE = 300, 2

# The engine asks such a graph for one token's logits in each row, never for those of several.
LEFT_OUT = "verified drafts"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Request(_Part):
    """The graph as it came and as it is served, and what is to be known of both; `size` is in bytes."""

    original: Path
    adapted: Path
    size: int
    signature: Signature
    states: tuple[StateTensor, ...]
    precision: Precision
    max_length: int
    tokenizer: Path


class Proof(_Part):
    """Every scenario, and the perplexity, against the graph as it came."""

    scenarios: tuple[Scenario, ...]
    perplexity: Perplexity


def prove_decoder(request: Request) -> Proof:
    """Compare the two graphs in `request`, which may say that they differ.

    Raises ExportError in one sentence where that can't be told, also for too much time or memory.
    """
    require_length(request.max_length)
    return prove_apart(
        "export.decoder_proof",
        request=request.model_dump_json(),
        seconds=SECONDS + SECONDS_PER_MEGABYTE * request.size // 10**6,
        proof=Proof,
        file=request.original.name,
        trouble=f"{request.original.name} can't be run as a decoder",
    )


def examine(request: Request) -> Proof:
    """The proof itself, in this process."""
    reference = PlainDecoder(request.original, request.signature, request.max_length)
    graph = GraphSession(request.adapted, request.states, is_fused=True)
    text = text_tokens(request.tokenizer.read_text("utf-8"), None)
    tolerance, scenarios = TOLERANCES[request.precision], []
    for name, scenario in SCENARIOS.items():
        if name != LEFT_OUT:
            run = scenario(graph, np.resize(text, LONGEST))
            require_finite(np.stack([observation.logits for observation in run.observations]))
            scenarios.append(compare_scenario(name, run, reference, tolerance))
    perplexity = measure_perplexity(graph, reference, text, name=DEFAULT_TEXT, tolerance=tolerance)
    return Proof(scenarios=tuple(scenarios), perplexity=perplexity)


def main() -> None:
    """Print the proof for the request on standard input; an error is one line and exit code 1."""
    request = Request.model_validate_json(sys.stdin.read())
    # Not the address space: the states are mapped for the whole context, and real only as far as it is used.
    limit_memory(resource.RLIMIT_DATA, request.size)
    try:
        print(examine(request).model_dump_json())
    except Exception as error:  # whatever ONNX Runtime makes of the graph
        said = str(error) if isinstance(error, ExportError) else f"{type(error).__name__}: {error}"
        sys.exit(" ".join(said.split()))


if __name__ == "__main__":
    main()

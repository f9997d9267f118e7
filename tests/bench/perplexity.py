"""`make perplexity`: what each precision costs SmolLM2, and that its three doors lead to one model.

Its GGUF file, the Hugging Face directory that transformers makes of it, and the safetensors file in there are
each exported in fp32; then int8 and int4. The engine's own runner reads every text: a prompt, then token by
token what was really written, all rows together.
"""

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from pydoc_data.topics import topics

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer

from backends.causal_lm.manifest import read_manifest
from backends.causal_lm.runtime.runner import Runner
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.settings import EngineSettings
from export.console import StageReporter
from export.errors import ExportError
from export.manifest import Precision
from export.measurement import cut_windows
from export.pipeline import ExportOptions, export_model
from export.sources import find_source
from tests.bench.measure import machine, write_json
from tests.export.three_doors import doors
from training.data.chitchat import read_chitchat

HERE = Path(__file__).parent
MODELS, RESULTS = HERE / "models", HERE / "results" / "perplexity.json"
ROWS, LENGTH, PROMPT = 16, 256, 16  # windows of a text, tokens each, and how many of them are not judged
CONVERSATIONS = 400
GOALS: dict[Precision, float] = {"int8": 1.005, "int4": 1.03}

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class Quality:
    """Perplexity by text of one export; `refusal` says why there is none."""

    door: str
    precision: Precision
    perplexity: Mapping[str, float]
    refusal: str = ""


def main() -> None:
    """Export what is missing, measure, print, write; exit code 1 if the doors differ or a goal is missed."""
    argparse.ArgumentParser(prog="make perplexity", description=__doc__.splitlines()[0]).parse_args()
    texts, found = held_out_texts(), list[Quality]()
    for door, source in doors(find_source("smollm2", None), MODELS / "smollm2-directory").items():
        found.append(quality(door, source, "fp32", texts))
    found += [quality("gguf", find_source("smollm2", None), precision, texts) for precision in GOALS]
    print_table(found, list(texts))
    write_json({"machine": machine(), "rows": [asdict(row) for row in found]}, RESULTS)
    if missed := list(shortcomings(found)):
        sys.exit("; ".join(missed))


def held_out_texts() -> dict[str, str]:
    """Text that SmolLM2 did not write: real dialogues, and Python's documentation, as the proof takes it."""
    talks = read_chitchat()[:CONVERSATIONS]
    return {
        "dialogues": "\n\n".join("\n".join(message.content for message in talk.messages) for talk in talks),
        "documentation": "\n".join(topics[name] for name in sorted(topics)),
    }


def quality(door: str, source: Path, precision: Precision, texts: Mapping[str, str]) -> Quality:
    """Export the model behind one door, if that has not been done, and judge it."""
    name = "smollm2" if door == "gguf" else f"smollm2-{door}"
    options = ExportOptions(model=name, source=source, precision=precision, repository=MODELS / precision)
    Console().print(f"{door}, {precision}")
    try:
        with StageReporter() as reporter:
            version = export_model(options, reporter.enter).directory
    except ExportError as error:
        return Quality(door, precision, {}, refusal=str(error))
    return Quality(door, precision, {text: engine_perplexity(version, texts[text]) for text in texts})


def engine_perplexity(version: Path, text: str) -> float:
    """Perplexity of `text` by the engine's runner over the version directory."""
    manifest = read_manifest(version / "manifest.json")
    ids = Tokenizer.from_file(str(version / "tokenizer.json")).encode(text, add_special_tokens=False).ids
    windows = cut_windows(np.array(ids), ROWS, min(LENGTH, manifest.max_length))
    return forced_perplexity(OnnxRuntimeRunner(version, manifest, EngineSettings(slots=ROWS)), windows)


def forced_perplexity(runner: Runner, windows: Tokens) -> float:
    """Perplexity of the tokens after the first `PROMPT` of each row of `windows` (B, T)."""
    prompts = [runner.prefill(row, window[:PROMPT], 0).copy() for row, window in enumerate(windows)]
    losses = [surprise(np.stack(prompts), windows[:, PROMPT])]
    for position in range(PROMPT, windows.shape[1] - 1):
        logits = runner.decode(windows[:, position], np.full(len(windows), position))
        losses.append(surprise(logits, windows[:, position + 1]))
    return float(np.exp(np.mean(losses)))


def surprise(logits: NDArray[np.float32], tokens: Tokens) -> NDArray[np.float64]:
    """-log p (B,) of `tokens` (B,) under `logits` (B, V)."""
    wide = logits.astype(np.float64)
    wide -= wide.max(axis=1, keepdims=True)
    losses: NDArray[np.float64] = np.log(np.exp(wide).sum(axis=1)) - wide[np.arange(len(tokens)), tokens]
    return losses


def shortcomings(found: list[Quality]) -> Iterator[str]:
    """One phrase for each thing that is not as it should be."""
    whole = [row for row in found if row.precision == "fp32"]
    first = whole[0].perplexity
    for row in found:
        what = f"{row.door} in {row.precision}"
        if row.refusal:
            yield f"{what}: {row.refusal}"
        elif row.precision == "fp32" and row.perplexity != first:
            yield f"{what} has another perplexity than {whole[0].door}"
        for text, value in row.perplexity.items():
            if value > first[text] * GOALS.get(row.precision, 1):
                yield f"{what} costs {value / first[text] - 1:.2%} on {text}"


def print_table(found: list[Quality], texts: list[str]) -> None:
    """The figures for a person."""
    table = Table("door", "precision", *texts, title="perplexity through the engine, and over fp32")
    first = found[0].perplexity
    for row in found:
        cells = [f"{row.perplexity[t]:.4f} {row.perplexity[t] / first[t] - 1:+.2%}" for t in row.perplexity]
        table.add_row(row.door, row.precision, *(cells or ["refused by its proof"] * len(texts)))
    Console(width=110).print(table)


if __name__ == "__main__":
    main()

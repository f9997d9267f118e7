"""How good a model is: its predictions on held-out text beside simple baselines, and its answers to tests."""

import json
import math
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from training.baselines import Baselines, measure_baselines
from training.data.case import Case
from training.data.corpus import PreparedData
from training.decoder import Decoder
from training.exact_match import BATCH, Score, score
from training.predictions import (
    Doubt,
    LayerLoad,
    Quality,
    describe_doubt,
    describe_layers,
    predict,
    summarize,
)

EVALUATION = "evaluation.json"
NUM_EXAMPLES = 5


@dataclass(frozen=True)
class Report:
    """All that is measured of a finished model.

    `scores` are by test set, `experts` by layer, `uncertainty` by figure; `examples` are held-out questions
    that the model answers rightly.
    """

    data: str
    quality: Quality
    baselines: Baselines
    scores: dict[str, Score]
    examples: list[dict[str, str]]
    experts: list[LayerLoad]
    uncertainty: dict[str, Doubt]

    def as_json(self) -> dict[str, Any]:
        """The form of `evaluation.json`."""
        scores = {
            name: {"right": s.right, "of": s.of, "share": s.share, "kinds": s.kinds}
            for name, s in self.scores.items()
        }
        return {
            "data": self.data,
            "quality": asdict(self.quality),
            "baselines": asdict(self.baselines),
            "scores": scores,
            "examples": self.examples,
            "experts": [asdict(layer) for layer in self.experts],
            "uncertainty": {name: asdict(doubt) for name, doubt in self.uncertainty.items()},
        }

    def as_text(self) -> str:
        """The content of `evaluation.json`."""
        return json.dumps(self.as_json(), indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _ignore() -> None:
    """Nobody watches."""


def evaluate(
    decoder: Decoder, tokenizer: Tokenizer, data: PreparedData, *, advance: Callable[[], None] = _ignore
) -> Report:
    """Measure everything that `data` allows; `advance` is called `num_parts(data)` times on the way."""
    predictions = predict(decoder, data.validation, advance)
    baselines = measure_baselines(data, vocab_size=decoder.config.vocab_size)
    advance()
    sets = {name: cases for name, cases in data.test_sets.items() if cases}
    scores = {name: score(decoder, tokenizer, cases, advance=advance) for name, cases in sets.items()}
    return Report(
        data=data.summary,
        quality=summarize(predictions, tokenizer),
        baselines=baselines,
        scores=scores,
        examples=_examples(sets["held_out"], scores["held_out"]) if "held_out" in sets else [],
        experts=describe_layers(predictions.load),
        uncertainty=describe_doubt(predictions),
    )


def num_parts(data: PreparedData) -> int:
    """How often `evaluate` reports that it has come further."""
    return len(data.validation) + 1 + sum(math.ceil(len(cases) / BATCH) for cases in data.test_sets.values())


def _examples(cases: Sequence[Case], result: Score) -> list[dict[str, str]]:
    """The shortest right single-turn question of each of NUM_EXAMPLES kinds."""
    wrong = {(mistake.question, mistake.expected) for mistake in result.mistakes}
    by_kind: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: len(case.messages[-1].content)):
        question = case.messages[-1].content
        if len(case.messages) == 1 and question.endswith("?") and (question, case.answer) not in wrong:
            by_kind.setdefault(case.kind, case)
    chosen = list(by_kind.values())[:NUM_EXAMPLES]
    return [{"question": case.messages[-1].content, "answer": case.answer} for case in chosen]


def write_evaluation(report: Report, directory: Path) -> Path:
    """Write `evaluation.json` into a model directory: the whole of it or, if that fails, nothing."""
    path = directory / EVALUATION
    handle, name = tempfile.mkstemp(prefix=f".{EVALUATION}.", dir=directory)
    fresh = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(report.as_text())
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)
    return path

"""`comparison.json`: the proof that travels with an artifact and that installing demands."""

import hashlib
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from export.errors import ExportError
from export.manifest import Engine, Precision

COMPARISON = "comparison.json"
CHUNK_BYTES = 1 << 20


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class FileHash(_Part):
    """One file of the artifact."""

    bytes: int
    sha256: str


class Scenario(_Part):
    """Logits of one way to run the graph, against PyTorch's over the full sequence.

    The errors are those of |Δlogit|, `logit_spread` is the standard deviation of PyTorch's logits. `limit`
    bounds the `stat`, "max" or "mean", of |Δlogit| over all steps.
    """

    name: str
    steps: int
    max_error: float
    mean_error: float
    logit_spread: float
    top1_agreement: float
    stat: Literal["max", "mean"]
    limit: float
    passed: bool


class Figure(_Part):
    """One extra output of the graph, against PyTorch's over the full sequences.

    The errors are those of |Δfigure|. `limit` bounds the `stat`, "max" or "mean", over all steps.
    """

    name: str
    steps: int
    max_error: float
    mean_error: float
    largest: float
    stat: Literal["max", "mean"]
    limit: float
    passed: bool


class Perplexity(_Part):
    """Perplexity on held-out text, decoded token by token in a batch; `ratio` is graph / reference."""

    text: str
    tokens: int
    reference: float
    graph: float
    ratio: float
    top1_agreement: float
    limit: float
    passed: bool


class Experts(_Part):
    """How many of all layers' experts the compared tokens reached; the others are dead for these tokens."""

    reached: int
    total: int


class Comparison(_Part):
    """The whole report; `request` is the hash of everything that the artifact follows from."""

    format: Literal["trident-comparison/1"] = "trident-comparison/1"
    model: str
    engine: Engine
    precision: Precision
    request: str
    artifact: dict[str, FileHash]
    reference: str
    ran_on: str
    scenarios: tuple[Scenario, ...]
    perplexity: Perplexity
    experts: Experts | None
    figures: tuple[Figure, ...] = ()

    @property
    def reference_name(self) -> str:
        """What the artifact was compared with, without the particulars."""
        return self.reference.partition(",")[0]

    @property
    def passed(self) -> bool:
        """Whether every measure is within its limit."""
        return not self.failures

    @property
    def failures(self) -> list[str]:
        """One phrase per measure beyond its limit."""
        failed = [
            f"{s.name}: {s.stat} logit error up to {s.max_error:.3g}, allowed is a {s.stat} of {s.limit:.3g}"
            for s in self.scenarios
            if not s.passed
        ]
        failed += [
            f"{f.name}: {f.stat} error {f.max_error:.3g} at most, allowed is a {f.stat} of {f.limit:.3g}"
            for f in self.figures
            if not f.passed
        ]
        if not self.perplexity.passed:
            ratio, limit = self.perplexity.ratio, self.perplexity.limit
            whose = f"that of {self.reference_name}"
            failed.append(f"perplexity is {ratio:.4f} times {whose}, allowed is {limit:.4f}")
        return failed


def hash_artifact(files: list[Path]) -> dict[str, FileHash]:
    """Size and SHA-256 of each file, by name."""
    return {path.name: FileHash(bytes=path.stat().st_size, sha256=_sha256(path)) for path in files}


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def read_comparison(directory: Path) -> Comparison:
    """The report in `directory`; ExportError when it is missing or no report."""
    path = directory / COMPARISON
    try:
        return Comparison.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ExportError(
            f"{path} is missing: only what has been compared is installed; run the export"
        ) from None
    except ValidationError as error:
        raise ExportError(
            f"{path} is no comparison report: {error.errors()[0]['msg']}; run the export"
        ) from error


def write_comparison(comparison: Comparison, directory: Path) -> None:
    """Write the report beside the artifact that it is about."""
    (directory / COMPARISON).write_text(comparison.model_dump_json(indent=2) + "\n", encoding="utf-8")


def require_passed(directory: Path) -> Comparison:
    """The report in `directory`, if it passed and is about exactly these files; else ExportError."""
    comparison = read_comparison(directory)
    if not comparison.passed:
        raise ExportError(
            f"{comparison.model} in {comparison.precision} differs from "
            f"{comparison.reference_name} by more than is allowed "
            f"({'; '.join(comparison.failures)}), so it is not installed"
        )
    for name, expected in comparison.artifact.items():
        path = directory / name
        if not path.is_file() or hash_artifact([path])[name] != expected:
            raise ExportError(f"{path} is not the file that {COMPARISON} is about: run the export again")
    return comparison

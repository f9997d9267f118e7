"""`comparison.json` of a model that is no decoder: what it was compared with, and how far it was off."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from export.comparison import COMPARISON, FileHash, hash_artifact
from export.errors import ExportError
from export.manifest import SourceStamp


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="constants")


class Check(_Part):
    """The largest |Δ| of all outputs in one comparison, as a share of the largest value or of 1."""

    name: str
    max_error: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is within its limit; what is no number is not."""
        return self.max_error <= self.limit


class GraphReport(_Part):
    """The whole report; `request` is the hash of everything that the artifact follows from."""

    format: Literal["trident-graph-comparison/1"] = "trident-graph-comparison/1"
    model: str
    request: str
    source: SourceStamp
    artifact: dict[str, FileHash]
    reference: str
    checks: tuple[Check, ...]
    notes: tuple[str, ...] = ()

    def require_passed(self) -> None:
        """ExportError that names every check beyond its limit."""
        failed = [
            f"{check.name}: off by {check.max_error:.3g}, allowed is {check.limit:.3g}"
            for check in self.checks
            if not check.passed
        ]
        if failed:
            raise ExportError(
                f"{self.model} differs from {self.reference} ({'; '.join(failed)}), so it is not installed"
            )


@dataclass(frozen=True)
class GraphOutcome:
    """Where the graph lies, the report that it passed, and whether this run made it."""

    directory: Path
    report: GraphReport
    is_new: bool


def write_report(report: GraphReport, directory: Path) -> None:
    """Write the report beside the artifact that it is about."""
    (directory / COMPARISON).write_text(report.model_dump_json(indent=2) + "\n", encoding="utf-8")


def installed_report(directory: Path) -> GraphReport | None:
    """The report in `directory`, if it is one and the artifact is there as a whole."""
    try:
        report = GraphReport.model_validate_json((directory / COMPARISON).read_bytes())
    except (OSError, ValidationError):
        return None
    paths = [directory / name for name in report.artifact]
    if not all(path.is_file() for path in paths) or hash_artifact(paths) != report.artifact:
        return None
    return report

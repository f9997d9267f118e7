"""What is asked for and whether it is there already; the heavy part loads only if it is not."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from export.comparison import Comparison, read_comparison
from export.errors import ExportError
from export.formats.detect import stamp_source
from export.installed import artifact_request, installed_engine, installed_request
from export.manifest import Engine, Precision, Sampling, SourceStamp
from export.sources import find_source, sampling_for
from export.stamps import request_hash

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")
RESERVED_ENDINGS = ("_engine", "_tokenizer", "_embedder", "_embedding")

# A stage's name when it begins, and within it what is done now.
Progress = Callable[[str, str], None]


@dataclass(frozen=True)
class ExportOptions:
    """What to export and where to; `output` takes a plan, which is not installed.

    `chat_template` is a file that replaces the checkpoint's own.
    """

    model: str
    source: Path | None = None
    engine: Engine = "onnxruntime"
    precision: Precision = "int8"
    max_length: int | None = None
    repository: Path = Path("model_repository")
    output: Path | None = None
    force: bool = False
    chat_template: Path | None = None

    @property
    def plan_directory(self) -> Path:
        """Where a TensorRT plan goes."""
        return self.output or Path("build") / f"{self.model}-{self.engine}-{self.precision}"


@dataclass(frozen=True)
class Job:
    """An export with everything looked up and nothing loaded yet."""

    options: ExportOptions
    path: Path
    source: SourceStamp
    sampling: Sampling
    request: str

    @property
    def is_installed(self) -> bool:
        """Whether the result goes into the repository; a plan does not, the engine does not run it yet."""
        return self.options.engine == "onnxruntime"


@dataclass(frozen=True)
class Outcome:
    """Where the engine's files lie, the comparison they passed, and whether this run made it."""

    directory: Path
    comparison: Comparison
    is_new: bool
    note: str = ""


def export_model(options: ExportOptions, progress: Progress) -> Outcome:
    """Export and install one model; what is installed already from equal inputs is left as it is.

    Raises ExportError in one sentence. Nothing half-done stays behind, whatever happens.
    """
    job = plan_job(options)
    directory = existing_artifact(job)
    if directory is not None and not options.force:
        return Outcome(directory, read_comparison(directory), is_new=False)
    # Here, because the stages load torch, and a set-up machine does not need it to start.
    from export.stages import run_stages

    return run_stages(job, progress)


def existing_artifact(job: Job) -> Path | None:
    """Where the result of exactly this job lies from an earlier run."""
    options = job.options
    if not job.is_installed:
        return options.plan_directory if artifact_request(options.plan_directory) == job.request else None
    is_installed = installed_request(options.repository, options.model) == job.request
    return installed_engine(options.repository, options.model) if is_installed else None


def plan_job(options: ExportOptions) -> Job:
    """Find and hash the source, and everything else that the result follows from."""
    check_name(options.model)
    if options.engine == "onnxruntime" and options.precision == "fp16":
        raise ExportError(
            "ONNX Runtime computes in float32 on a CPU: choose int8, int4 or fp32, or --engine tensorrt-rtx"
        )
    path = find_source(options.model, options.source)
    source, sampling = stamp_source(path, options.chat_template), sampling_for(options.model)
    request = request_hash(
        model=options.model,
        source=source,
        engine=options.engine,
        precision=options.precision,
        max_length=options.max_length,
        sampling=sampling,
    )
    return Job(options, path, source, sampling, request)


def check_name(name: str) -> None:
    """ExportError unless `name` can be a directory that clients call and that is no step of another model."""
    if not NAME.fullmatch(name) or name.endswith(RESERVED_ENDINGS):
        raise ExportError(
            f"model name {name!r}: allowed are lower-case letters, digits, '.', '_' and '-', up to 63, "
            f"not ending in {' or '.join(RESERVED_ENDINGS)}"
        )

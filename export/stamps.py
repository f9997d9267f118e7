"""What an artifact depends on besides its weights: library versions and the code that made it."""

import hashlib
import json
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from export.errors import ExportError
from export.formats.detect import hash_files
from export.manifest import Engine, Precision, Sampling, SourceStamp

OPSET = 24
ROOT = Path(__file__).parent.parent

# Distribution that runs the artifact, by engine, and the name of its stamp.
RUNTIMES: dict[Engine, tuple[str, str]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime"),
    "tensorrt": ("tensorrt", "tensorrt"),
    "tensorrt-rtx": ("tensorrt-rtx", "tensorrt-rtx-cu13"),
}

# The code that decides what a graph computes and what passes, and what of it does not.
RECIPE = ("export/**/*.py", "training/blocks/*.py", "training/decoder.py", "training/lowering.py")
PLUMBING = {
    "__main__.py",
    "console.py",
    "embedder_command.py",
    "embedder_options.py",
    "errors.py",
    "hub.py",
    "import_command.py",
    "inspect_command.py",
    "inspection.py",
    "installed.py",
    "pipeline.py",
    "refusals.py",
    "workspace.py",
}


def library_stamps(engine: Engine) -> dict[str, str | int]:
    """Versions of what made the artifact and of what runs it, without build tags such as `+cpu`."""
    name, distribution = RUNTIMES[engine]
    made_by = {package: _version(package) for package in ("trident", "torch", "onnx")}
    return {**made_by, "opset": OPSET, name: _version(distribution)}


def _version(distribution: str) -> str:
    try:
        return version(distribution).partition("+")[0]
    except PackageNotFoundError:
        raise ExportError(
            f"{distribution} is not installed, and this engine is built with it; "
            "`--engine onnxruntime` works without it"
        ) from None


def recipe_hash() -> str:
    """A hash over the code that decides what a graph computes, so that changed code exports anew."""
    files = {path for pattern in RECIPE for path in ROOT.glob(pattern)}
    return hash_files(sorted(path for path in files if path.name not in PLUMBING))


def request_hash(
    *,
    model: str,
    source: SourceStamp,
    engine: Engine,
    precision: Precision,
    max_length: int | None,
    sampling: Sampling,
) -> str:
    """One hash over everything that an installed engine follows from; equal means nothing is to be done."""
    request = {
        "model": model,
        "source": source.model_dump(),
        "engine": engine,
        "precision": precision,
        "max_length": max_length,
        "sampling": sampling.model_dump(),
        "stamps": library_stamps(engine),
        "recipe": recipe_hash(),
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

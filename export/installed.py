"""What a model repository holds. Loads nothing heavy, so that a set-up machine starts fast."""

from pathlib import Path

from export.comparison import read_comparison
from export.contract import engine_name, tokenizer_name
from export.errors import ExportError

CONFIG = "config.pbtxt"


def versions(target: Path) -> list[int]:
    """The versions in a model directory, in no order; none if it does not exist."""
    if not target.is_dir():
        return []
    return [int(path.name) for path in target.iterdir() if path.is_dir() and path.name.isdecimal()]


def latest_version(target: Path) -> int:
    """The highest version in a model directory; 0 if there is none."""
    return max(versions(target), default=0)


def installed_engine(repository: Path, model: str) -> Path:
    """The version directory of the engine that Triton would load for `model`."""
    engine = repository / engine_name(model)
    return engine / str(latest_version(engine))


def installed_request(repository: Path, model: str) -> str | None:
    """The request hash of the installation of `model`; None if there is none, or not the whole of it."""
    parts = [repository / name for name in (model, tokenizer_name(model), engine_name(model))]
    if not all((part / CONFIG).is_file() and latest_version(part) for part in parts):
        return None
    return artifact_request(installed_engine(repository, model))


def artifact_request(directory: Path) -> str | None:
    """The request hash of the compared artifact in `directory`; None if there is none, or not the whole."""
    try:
        comparison = read_comparison(directory)
    except ExportError:
        return None
    sizes = {path.name: path.stat().st_size for path in directory.iterdir()}
    is_whole = all(sizes.get(name) == file.bytes for name, file in comparison.artifact.items())
    return comparison.request if is_whole else None

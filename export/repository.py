"""Installs a model into a Triton model repository: three directories, versions, nothing half-written."""

import os
import shutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from export.comparison import COMPARISON, hash_artifact, require_passed
from export.contract import engine_name, tokenizer_name
from export.installed import CONFIG, latest_version, versions
from export.triton_config import ENGINE_PARAMETERS, engine_config, ensemble_config, tokenizer_config

KEPT_VERSIONS = 2  # the served one, and the one before to go back to


@dataclass(frozen=True)
class Installed:
    """A model's engine, as Triton will load it; `is_new` says whether this call put it there."""

    directory: Path
    is_new: bool


def install(
    repository: Path,
    model: str,
    *,
    engine: Path,
    tokenizer: Path,
    parameters: Mapping[str, str] | None = None,
    figures: Collection[str] = (),
) -> Installed:
    """Move the files in `engine` and `tokenizer` into the repository and write the three configurations.

    Both directories must be on the repository's filesystem. What is there already with equal content is
    kept. `parameters` are the engine's settings, `figures` the graph's extra outputs.
    Raises ExportError unless the comparison passed.
    """
    require_passed(engine)
    repository.mkdir(parents=True, exist_ok=True)
    install_version(repository / tokenizer_name(model), tokenizer, tokenizer_config(model))
    config = engine_config(model, parameters or ENGINE_PARAMETERS, figures)
    installed = install_version(repository / engine_name(model), engine, config)
    # The ensemble comes last: when clients can see it, its steps are there.
    nothing = engine.with_name(f"{engine.name}.ensemble")
    nothing.mkdir()
    install_version(repository / model, nothing, ensemble_config(model, figures))
    return installed


def install_version(target: Path, files: Path, config: str) -> Installed:
    """Make `files` the next version of the model at `target`, unless the last one has equal content.

    `files` must be on the same filesystem; it is moved.
    """
    latest = latest_version(target)
    current = target / str(latest)
    if latest and _content(current) == _content(files):
        if (files / COMPARISON).is_file():
            os.replace(files / COMPARISON, current / COMPARISON)
        _write_config(target, config)
        return Installed(current, is_new=False)
    sync_tree(files)
    version = target / str(latest + 1)
    if target.exists():
        files.rename(version)
        _write_config(target, config)
        _prune(target)
    else:
        _install_first(target, files, config)
    _sync(target.parent)
    return Installed(version, is_new=True)


def _install_first(target: Path, files: Path, config: str) -> None:
    fresh = files.with_name(f"{files.name}.first")
    fresh.mkdir()
    files.rename(fresh / "1")
    _write_config(fresh, config)
    fresh.rename(target)


def _content(directory: Path) -> dict[str, str]:
    """Hash by name; the report is left out, since it may be renewed for an unchanged artifact."""
    files = [path for path in directory.iterdir() if path.name != COMPARISON]
    return {name: file.sha256 for name, file in hash_artifact(files).items()}


def _write_config(target: Path, config: str) -> None:
    path = target / CONFIG
    if path.is_file() and path.read_text("utf-8") == config:
        return
    temporary = path.with_name(f".{CONFIG}.new")
    temporary.write_text(config, encoding="utf-8")
    _sync(temporary)
    os.replace(temporary, path)
    _sync(target)


def _prune(target: Path) -> None:
    for version in sorted(versions(target))[:-KEPT_VERSIONS]:
        shutil.rmtree(target / str(version))


def sync_tree(directory: Path) -> None:
    """Have every file below `directory` and its names on the disk."""
    for path in directory.rglob("*"):
        _sync(path)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

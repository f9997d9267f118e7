"""From a version directory to a running engine."""

import re
from dataclasses import replace
from hashlib import blake2b, file_digest
from pathlib import Path

from tokenizers import Tokenizer

from backends.causal_lm.caching.session_files import SessionDirectory
from backends.causal_lm.caching.sessions import Sessions
from backends.causal_lm.engine import Engine
from backends.causal_lm.manifest import LoadError, Manifest, read_manifest
from backends.causal_lm.metrics import Metrics
from backends.causal_lm.runtime.free_memory import free_memory
from backends.causal_lm.runtime.runner_onnxruntime import OnnxRuntimeRunner
from backends.causal_lm.settings import EngineSettings


def load_engine(directory: Path, settings: EngineSettings, metrics: Metrics) -> Engine:
    """Start an engine over a version directory (manifest.json, graph, tokenizer.json); raises LoadError."""
    manifest = read_manifest(directory / "manifest.json")
    path = directory / "tokenizer.json"
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise LoadError(f"{path} can't be read ({error}); export {manifest.model!r} again") from error
    runner = OnnxRuntimeRunner(directory, manifest, settings)
    settings = replace(settings, state_bytes=settings.state_bytes or free_memory() // 2)
    sessions = Sessions(
        settings.session_memory_bytes, _session_directory(directory, manifest, settings), metrics
    )
    return Engine(runner, tokenizer, manifest=manifest, settings=settings, metrics=metrics, sessions=sessions)


def _session_directory(
    directory: Path, manifest: Manifest, settings: EngineSettings
) -> SessionDirectory | None:
    """Where a model's sessions are kept on disk, each model's apart."""
    if not settings.session_directory:
        return None
    path = Path(settings.session_directory) / re.sub(r"[^\w-]", "_", manifest.model)
    try:
        return SessionDirectory(path, _identity(directory, manifest), settings.session_disk_bytes)
    except OSError as error:
        raise LoadError(
            f"parameter session_directory: {path} can't be used ({error}); name one that can be written"
        ) from error


def _identity(directory: Path, manifest: Manifest) -> str:
    """A digest of all that a state depends on: the graph, its weights, what is said of them."""
    identity = blake2b(digest_size=32)
    for path in (directory / "manifest.json", *sorted(directory.glob(f"{manifest.graph}*"))):
        with path.open("rb") as file:
            identity.update(file_digest(file, "blake2b").digest())
    return identity.hexdigest()

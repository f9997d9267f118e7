"""From a version directory to a running engine."""

from pathlib import Path

from tokenizers import Tokenizer

from backends.causal_lm.engine import Engine
from backends.causal_lm.manifest import LoadError, read_manifest
from backends.causal_lm.metrics import Metrics
from backends.causal_lm.runner_onnxruntime import OnnxRuntimeRunner
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
    return Engine(runner, tokenizer, manifest=manifest, settings=settings, metrics=metrics)

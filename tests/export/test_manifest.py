"""manifest.json is exactly what model_repository/README.md says, and what the engine reads."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from backends.causal_lm.manifest import read_manifest as engine_reads
from export.errors import ExportError
from export.manifest import Manifest, read_manifest, write_manifest

README = Path(__file__).parents[2] / "model_repository" / "README.md"


def documented() -> dict[str, Any]:
    """The example in the README, with its placeholder hash filled in."""
    block = re.search(r"```json\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert block is not None
    example: dict[str, Any] = json.loads(block[1])
    example["source"]["sha256"] = "ab" * 32
    return example


def test_the_documented_example_is_read_and_written_unchanged(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(documented()))
    write_manifest(read_manifest(path), path)
    assert json.loads(path.read_text()) == documented()


def test_the_engine_reads_what_export_writes(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    manifest = Manifest.model_validate(documented())
    write_manifest(manifest, path)
    read = engine_reads(path)
    assert read.states[0].shape == manifest.states[0].shape
    assert read.special_tokens.eos == manifest.special_tokens.eos
    assert read.stamps == manifest.stamps


@pytest.mark.parametrize("key", sorted(documented()))
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps({name: value for name, value in documented().items() if name != key}))
    with pytest.raises(ExportError, match=key):
        read_manifest(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surplus": 1}, "surplus"),
        ({"engine": "vllm"}, "engine: Input should be 'onnxruntime', 'tensorrt' or 'tensorrt-rtx'"),
        ({"sampling": documented()["sampling"] | {"temperature": 3}}, r"sampling\.temperature"),
        ({"source": documented()["source"] | {"sha256": "…"}}, r"source\.sha256"),
        ({"special_tokens": {"bos": 1, "eos": [], "pad": None}}, r"special_tokens\.eos"),
    ],
)
def test_an_unknown_key_or_value_is_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(documented() | change))
    with pytest.raises(ExportError, match=message):
        read_manifest(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"manifest\.json is not .*: No such file"):
        read_manifest(tmp_path / "manifest.json")

"""manifest.json is read whole or refused with a sentence."""

import json
from pathlib import Path
from typing import Any

import pytest

from backends.causal_lm.manifest import LoadError, State, check_stamp, read_manifest
from tests.backends.tiny_graph import MAX_LENGTH, manifest_data

KV = {
    "kind": "kv",
    "past": "past.0",
    "present": "present.0",
    "shape": [2, MAX_LENGTH, 16],
    "dtype": "float32",
}


def write(path: Path, changes: dict[str, Any], without: str = "") -> Path:
    data = manifest_data([KV]) | changes
    data.pop(without, None)
    (path / "manifest.json").write_text(json.dumps(data))
    return path / "manifest.json"


def test_a_whole_manifest_is_read_as_written(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, {"special_tokens": {"bos": None, "eos": [0, 3], "pad": 2}}))
    assert manifest.states == (State("kv", "past.0", "present.0", (2, MAX_LENGTH, 16), "float32"),)
    assert (manifest.special_tokens.bos, manifest.special_tokens.eos) == (None, (0, 3))
    assert manifest.sampling.top_p == 1.0
    assert manifest.max_length == MAX_LENGTH


def test_a_default_of_max_tokens_may_be_absent(tmp_path: Path) -> None:
    sampling = manifest_data([])["sampling"]
    for given, expected in (({}, None), ({"max_tokens": None}, None), ({"max_tokens": 7}, 7)):
        manifest = read_manifest(write(tmp_path, {"sampling": sampling | given}))
        assert manifest.sampling.max_tokens == expected


@pytest.mark.parametrize("key", sorted(manifest_data([])))
def test_every_key_is_needed(tmp_path: Path, key: str) -> None:
    with pytest.raises(LoadError, match=rf"missing keys \['{key}'\]"):
        read_manifest(write(tmp_path, {}, without=key))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, r"unknown keys \['colour'\]"),
        ({"format": "trident-engine/9"}, "this engine reads 'trident-engine/2'"),
        ({"vocab_size": 0}, "vocab_size is 0, allowed is an integer, 1 or more"),
        ({"vocab_size": True}, "vocab_size is True"),
        ({"model": ""}, "model is '', a non-empty string"),
        ({"states": {}}, "states is {}, a list"),
        ({"states": [KV | {"kind": "ring"}]}, "kind is 'ring', allowed are kv, recurrent"),
        ({"states": [KV | {"dtype": "int4"}]}, "dtype is 'int4', allowed are float32, float16"),
        ({"states": [KV | {"shape": [2, 7, 16]}]}, f"axis 1 must be max_length {MAX_LENGTH}"),
        ({"states": [KV | {"size": 1}]}, r"states: missing keys \[\], unknown keys \['size'\]"),
        (
            {"special_tokens": {"bos": 1, "eos": [999], "pad": 2}},
            "special_tokens.eos is 999, allowed .* 0 to 319",
        ),
        ({"special_tokens": []}, "special_tokens is .*an object is needed"),
        ({"sampling": manifest_data([])["sampling"] | {"top_p": "high"}}, "sampling.top_p is 'high'"),
        ({"sampling": {}}, "sampling: missing keys"),
        (
            {"sampling": manifest_data([])["sampling"] | {"max_tokens": 0}},
            "sampling.max_tokens is 0, .* 1 or more",
        ),
        (
            {"extra_outputs": ["mood"]},
            "extra_outputs has 'mood', .* known are confidence, epistemic, aleatoric",
        ),
        ({"extra_outputs": [["epistemic"]]}, "extra_outputs has .*'epistemic'"),
    ],
)
def test_a_wrong_value_is_named_with_what_is_allowed(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(LoadError, match=message):
        read_manifest(write(tmp_path, changes))


def test_a_missing_and_a_broken_file_are_load_errors(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="is missing; export the model again"):
        read_manifest(tmp_path / "manifest.json")
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(LoadError, match="is not JSON"):
        read_manifest(tmp_path / "manifest.json")


def test_a_stamp_fits_by_major_and_minor_only(tmp_path: Path) -> None:
    manifest = read_manifest(write(tmp_path, {"stamps": {"onnxruntime": "1.31.1"}}))
    check_stamp(manifest, "onnxruntime", "1.31.7")
    with pytest.raises(
        LoadError, match=r"exported for onnxruntime 1\.31\.1, this server runs 1\.32\.1: export it again"
    ):
        check_stamp(manifest, "onnxruntime", "1.32.1")
    with pytest.raises(LoadError, match="stamps has no 'tensorrt'"):
        check_stamp(manifest, "tensorrt", "11.1")

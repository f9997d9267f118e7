"""Hostile checkpoints: each is refused in one sentence, no code runs, and nothing half-installed remains."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from export.formats.readers import read_model
from tests.export.hostile_inputs import INPUTS, MARKER, SOUND

ROOT = Path(__file__).parent.parent.parent
LEAST = {"gguf": 190, "ggml": 240, "safetensors": 150, "config": 120, "index": 21, "torch": 48, "retnet": 97}


@dataclass(frozen=True)
class Imported:
    """What a process said that imported all of them, and what it left."""

    outcomes: list[dict[str, str]]
    directory: Path


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Imported:
    directory = tmp_path_factory.mktemp("hostile")
    command = [sys.executable, "-m", "tests.export.hostile_run", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-2000:]
    return Imported([json.loads(line) for line in done.stdout.splitlines()], directory)


@pytest.mark.parametrize("kind", sorted(INPUTS))
def test_every_hostile_input_is_refused_in_one_sentence(kind: str, imported: Imported) -> None:
    outcomes = [each for each in imported.outcomes if each["kind"] == kind]
    odd = [each for each in outcomes if each["outcome"] != "refused" or "\n" in each["said"]]
    assert not odd, json.dumps(odd[:20], indent=1)
    assert len(outcomes) >= LEAST[kind]
    left = {path.name for path in (imported.directory / kind).iterdir()}
    assert left == {"input"}  # neither repository nor workspace
    assert not (ROOT / MARKER).exists()


@pytest.mark.parametrize("kind", sorted(SOUND))
def test_without_their_fault_they_would_be_read(kind: str, tmp_path: Path) -> None:
    assert read_model(SOUND[kind]().write(tmp_path)).decoder.num_parameters() > 10_000


def test_there_are_enough_of_them() -> None:
    assert sum(LEAST.values()) >= 300
    assert set(LEAST) == set(INPUTS)

"""The assembled backend directory: whole, its own copy, new when a source is, and quick when none is."""

import dataclasses
import os
import subprocess
from pathlib import Path

import pytest

import backends.assemble
from backends.assemble import OURS, assemble
from backends.environment import ServerEnvironment, ServerError, inspect_environment
from backends.settings import ServerSettings


def test_every_backend_is_there_as_files_of_its_own(environment: ServerEnvironment, tmp_path: Path) -> None:
    made = assemble(environment, tmp_path / "out")
    assert {path.name for path in made.iterdir()} == {"python", *OURS}
    assert os.access(made / "python" / "triton_python_backend_stub", os.X_OK)
    assert not [path for path in made.rglob("*") if path.is_symlink()]
    for name in OURS:
        assert (made / name / "model.py").is_file()
        assert (made / name / "backends" / "__init__.py").is_file()


@pytest.mark.triton
@pytest.mark.parametrize("module", ["causal_lm.engine", "tokenizer.prompt"])
def test_the_servers_python_imports_the_copy_and_nothing_of_the_checkout(tmp_path: Path, module: str) -> None:
    root = ServerSettings(repository=tmp_path).environment
    if not root.exists():
        pytest.skip("needs the server's own Python environment, .triton: run `make setup`")
    made = assemble(inspect_environment(root), tmp_path / "out") / module.partition(".")[0]
    code = f"import sys; sys.path.append({str(made)!r}); import backends.{module} as m; print(m.__file__)"
    command = [str(root / "bin" / "python"), "-I", "-c", code]
    ran = subprocess.run(command, capture_output=True, text=True, cwd="/", check=True)
    assert Path(ran.stdout.strip()).is_relative_to(made)


def test_an_unchanged_source_is_not_copied_again(environment: ServerEnvironment, tmp_path: Path) -> None:
    first = assemble(environment, tmp_path / "out")
    stamp = (first / "tokenizer" / "model.py").stat().st_ino
    assert assemble(environment, tmp_path / "out") == first
    assert (first / "tokenizer" / "model.py").stat().st_ino == stamp


def test_a_changed_source_makes_a_new_directory_and_keeps_the_old(
    environment: ServerEnvironment, tmp_path: Path
) -> None:
    first = assemble(environment, tmp_path / "out")
    environment.stub.write_text("another stub")
    second = assemble(environment, tmp_path / "out")
    assert second != first
    assert (first / "python" / "triton_python_backend_stub").read_text() == "stub"
    assert (second / "python" / "triton_python_backend_stub").read_text() == "another stub"


def test_our_own_sources_count_by_content(
    environment: ServerEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "backends"
    for name in OURS:
        (package / name).mkdir(parents=True)
        (package / name / "model.py").write_text("")
    (package / "__init__.py").touch()
    monkeypatch.setattr(backends.assemble, "PACKAGE", package)
    first = assemble(environment, tmp_path / "out")
    os.utime(package / "tokenizer" / "model.py", (1, 1))
    assert assemble(environment, tmp_path / "out") == first
    (package / "tokenizer" / "model.py").write_text("changed = True")
    assert assemble(environment, tmp_path / "out") != first


def test_a_failure_leaves_nothing_behind(
    environment: ServerEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backends.assemble, "place", full)
    with pytest.raises(OSError, match="No space"):
        assemble(environment, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_losing_the_race_for_the_same_digest_is_fine(
    environment: ServerEnvironment, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = backends.assemble.install

    def late(building: Path, target: Path) -> None:
        target.mkdir()
        (target / "by-another").touch()
        real(building, target)

    monkeypatch.setattr(backends.assemble, "install", late)
    assert (assemble(environment, tmp_path / "out") / "by-another").exists()
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_a_missing_piece_is_named(environment: ServerEnvironment, tmp_path: Path) -> None:
    broken = dataclasses.replace(environment, python_version="2.7")
    with pytest.raises(ServerError, match=r"incomplete.*2\.7/triton_python_backend_stub"):
        assemble(broken, tmp_path / "out")

"""Imports between the stations go one way (docs/adr/001)."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

OURS = {"training", "export", "backends", "gateway", "client", "tests"}

# station -> what it may import of ours, besides itself
ALLOWED = {
    "training": (),
    "export": ("training",),
    "backends": (),
    "gateway": ("client.wire", "client.triton", "client.embeddings"),
    "client": (),
}

# What the server's own Python has (backends/requirements.lock); triton_python_backend_utils is Triton's.
SERVER_PACKAGES = {
    "numpy",
    "onnxruntime",
    "tokenizers",
    "jinja2",
    "llguidance",
    "triton_python_backend_utils",
}


def imported_modules(source: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{source}: relative import; write it absolutely"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def sources(station: str) -> list[Path]:
    return sorted((ROOT / station).rglob("*.py"))


def is_within(module: str, packages: tuple[str, ...]) -> bool:
    return any(f"{module}.".startswith(f"{package}.") for package in packages)


@pytest.mark.parametrize("station", ALLOWED)
def test_a_station_imports_only_what_lies_before_it(station: str) -> None:
    allowed = (station, *ALLOWED[station])
    foreign = {
        f"{source.relative_to(ROOT)} imports {module}"
        for source in sources(station)
        for module in imported_modules(source)
        if module.split(".")[0] in OURS and not is_within(module, allowed)
    }
    assert not foreign


@pytest.mark.parametrize("backend", ["causal_lm", "embedding_tokenizer", "onnxruntime", "tokenizer"])
def test_code_inside_triton_needs_only_the_server_environment(backend: str) -> None:
    known = SERVER_PACKAGES | {"backends"} | sys.stdlib_module_names
    foreign = {
        f"{source.relative_to(ROOT)} imports {module}"
        for source in sources(f"backends/{backend}")
        for module in imported_modules(source)
        if module.split(".")[0] not in known
    }
    assert not foreign


def test_no_station_changes_the_import_path() -> None:
    offenders = [
        source
        for station in ALLOWED
        for source in sources(station)
        if "sys.path" in source.read_text("utf-8")
    ]
    assert not offenders

"""Assembles the directory that Triton loads its backends from (docs/adr/002)."""

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from backends.environment import STUB, ServerEnvironment, ServerError

PACKAGE = Path(__file__).parent
OURS = ("causal_lm", "embedding_tokenizer", "onnxruntime", "tokenizer")
FROM_WHEEL = ("libtriton_python.so", "triton_python_backend_utils.py")


def assemble(environment: ServerEnvironment, root: Path) -> Path:
    """Returns `root/DIGEST`, a backend directory that holds the wheel's Python backend and ours.

    The digest covers every source: a changed source makes a new directory, an unchanged one costs a look,
    and a running server keeps the directory that it started with. Triton refuses symbolic links.
    """
    files = backend_files(environment)
    target = root / digest_of(files)
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=".assembling-", dir=root))
    try:
        for name, source in files.items():
            place(source, building / name)
        install(building, target)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def backend_files(environment: ServerEnvironment) -> dict[str, Path]:
    """Path inside the backend directory → the file that it comes from."""
    files = {f"python/{name}": environment.backends / "python" / name for name in FROM_WHEEL}
    files[f"python/{STUB}"] = environment.stub
    for name in OURS:
        files[f"{name}/model.py"] = PACKAGE / name / "model.py"
        files[f"{name}/backends/__init__.py"] = PACKAGE / "__init__.py"
        for source in sorted((PACKAGE / name).rglob("*.py")):
            files[f"{name}/backends/{source.relative_to(PACKAGE)}"] = source
    missing = [str(source) for source in files.values() if not source.is_file()]
    if missing:
        raise ServerError(f"a backend is incomplete, these files are missing: {', '.join(missing)}")
    return files


def digest_of(files: dict[str, Path]) -> str:
    """Our sources count by content; the wheel's megabytes by size and time, which installing changes."""
    digest = hashlib.sha256()
    for name, source in files.items():
        digest.update(f"{name}\0".encode())
        status = source.stat()
        ours = source.is_relative_to(PACKAGE)
        digest.update(source.read_bytes() if ours else f"{status.st_size} {status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def place(source: Path, target: Path) -> None:
    """Copies one file durably, executable bit included."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy2(source, target)
    with target.open("rb") as copied:
        os.fsync(copied.fileno())


def install(building: Path, target: Path) -> None:
    """Renames into place; another process that built the same digest first is as good."""
    building.chmod(0o755)
    try:
        building.rename(target)
    except OSError:
        if not target.is_dir():
            raise

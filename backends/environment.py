"""What the Python environment inside the server (`.triton`) offers, and what it lacks."""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

PROBE = """
import importlib.util, json, sys, sysconfig
variables = sysconfig.get_config_vars()
spec = importlib.util.find_spec("pytriton")
print(json.dumps({
    "version": "%d.%d" % sys.version_info[:2],
    "wheel": spec and spec.submodule_search_locations[0],
    "library": variables.get("INSTSONAME") or "",
    "shared": bool(variables.get("Py_ENABLE_SHARED")),
    "places": [variables.get("LIBDIR") or "", sys.base_prefix + "/lib"],
}))
"""


class ServerError(Exception):
    """The server can't be started or has stopped; the message is one sentence for the user."""


@dataclass(frozen=True)
class ServerEnvironment:
    """Where the pieces of the embedded server lie."""

    root: Path
    python_version: str  # "3.11"
    wheel: Path  # the directory of the pytriton package
    libpython: Path  # the directory of libpython3.x.so

    @property
    def binary(self) -> Path:
        return self.wheel / "tritonserver" / "bin" / "tritonserver"

    @property
    def backends(self) -> Path:
        return self.wheel / "tritonserver" / "backends"

    @property
    def stub(self) -> Path:
        return self.wheel / "tritonserver" / "python_backend_stubs" / self.python_version / STUB

    @property
    def libraries(self) -> tuple[Path, Path]:
        """What goes on the library path: the wheel's own libraries, then libpython's directory."""
        return self.wheel.parent / "nvidia_pytriton.libs", self.libpython


STUB = "triton_python_backend_stub"


def inspect_environment(root: Path) -> ServerEnvironment:
    """Asks the environment's own Python where things are. Raises ServerError that says how to repair it."""
    python = root / "bin" / "python"
    if not python.exists():
        raise ServerError(f"no server environment at {root}: run `make setup` or use --environment")
    answer = subprocess.run([str(python), "-I", "-c", PROBE], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        raise ServerError(f"{python} does not run ({last_line(answer.stderr)}): run `make setup` again")
    facts = json.loads(answer.stdout)
    if facts["wheel"] is None:
        raise ServerError(f"nvidia-pytriton is not installed in {root}: run `make setup`")
    environment = ServerEnvironment(
        root=root,
        python_version=facts["version"],
        wheel=Path(facts["wheel"]),
        libpython=find_libpython(facts, python),
    )
    if not environment.stub.exists():
        raise ServerError(f"Triton has no stub for Python {facts['version']}; it has them for 3.8 to 3.13")
    return environment


def find_libpython(facts: dict[str, object], python: Path) -> Path:
    """The directory that holds the shared libpython which the stub links to."""
    places = facts["places"]
    assert isinstance(places, list)
    for place in places:
        if facts["shared"] and place and (Path(place) / str(facts["library"])).exists():
            return Path(place)
    raise ServerError(
        f"{python} has no shared libpython, which Triton's stub needs: make the environment with a Python "
        "built with --enable-shared (pyenv: PYTHON_CONFIGURE_OPTS=--enable-shared)"
    )


def last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "no output"

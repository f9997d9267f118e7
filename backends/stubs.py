"""Watches the stubs, the processes in which Python backends run.

Triton 2.51 answers new requests of a crashed stub with an error, but leaves those under way hanging for ever
and keeps saying that the model is ready. Such a stub stays a zombie; an unloaded model's is reaped at once.
"""

from pathlib import Path

PROCESSES = Path("/proc")
SEEN_TWICE = 2
INSTANCE_ARGUMENT = 8  # of the stub's command line: MODEL_GROUP_NUMBER


class StubWatch:
    """Finds crashed stubs among the children of `server`; ask about once a second."""

    def __init__(self, server: int, processes: Path = PROCESSES) -> None:
        self._server = server
        self._processes = processes
        self.models: dict[int, str] = {}
        self._zombies: dict[int, int] = {}
        self._children()

    def crashed(self) -> list[str]:
        """The models whose stub was a zombie at this look and at the one before."""
        zombies = [child for child in self._children() if self._is_zombie(child)]
        self._zombies = {child: self._zombies.get(child, 0) + 1 for child in zombies}
        return [
            self.models.get(child, "a model") for child, looks in self._zombies.items() if looks >= SEEN_TWICE
        ]

    def _children(self) -> list[int]:
        """Children by process id; notes the model of each while its command line can still be read."""
        children: list[int] = []
        for tasks in (self._processes / str(self._server) / "task").glob("*/children"):
            children.extend(int(child) for child in read(tasks).split())
        for child in children:
            arguments = read(self._processes / str(child) / "cmdline").split("\0")
            if len(arguments) > INSTANCE_ARGUMENT:
                self.models[child] = arguments[INSTANCE_ARGUMENT].removesuffix("_0_0")
        return children

    def _is_zombie(self, child: int) -> bool:
        # The name before the state may hold spaces, but it ends with the last parenthesis.
        return read(self._processes / str(child) / "stat").rpartition(")")[2].split()[:1] == ["Z"]


def read(path: Path) -> str:
    """A file of /proc, empty when its process has just gone."""
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""

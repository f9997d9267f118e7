"""A peer as a process of its own, in the peers' environment."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENT = ROOT / ".peers"
PYTHON = ENVIRONMENT / "bin" / "python"
THREADS = len(os.sched_getaffinity(0))
GRACE_SECONDS = 10.0


class PeerProcess:
    """Runs `command` with pipes; `ask` writes a line and reads one. Its log goes to `log`."""

    def __init__(self, command: list[str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        with log.open("w") as stderr:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
            )

    def read(self) -> str:
        """The next line of its output; raises RuntimeError when it has died."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the peer has ended; its last words are in {self._log}")
        return line.strip()

    def ask(self, line: str) -> str:
        """One line there, one line back."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()
        return self.read()

    def check(self) -> None:
        """Raise RuntimeError when it has died."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the peer has ended; its last words are in {self._log}")

    def close(self) -> None:
        """End it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.terminate()
        try:
            self.process.wait(GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

"""Finds out whether a guide can be compiled within bounds, by trying it in another process."""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from backends.causal_lm.guiding.guide_trial import BYTES, CPU_SECONDS

_ROOT = Path(__file__).parents[3]  # where the package `backends` lies, in the checkout and inside Triton
_PATIENCE = 30.0  # seconds; the bound itself is in processor time, which a busy machine does not use up
_TOO_COSTLY = f"needs more than {CPU_SECONDS} s or {BYTES >> 20} MiB to be compiled; make it simpler"


class GuideChecker:
    """One process of guide_trial.py, started when it is first needed and again when it died.

    For one thread at a time.
    """

    def __init__(self, setup: dict[str, Any]) -> None:
        self._setup = setup
        self._process: subprocess.Popen[str] | None = None

    def fault_of(self, grammar: str) -> str:
        """What is wrong with a grammar; an empty string if it compiles."""
        if self._process is None:
            self._start()
        answer = self._ask({"grammar": grammar})
        return _TOO_COSTLY if answer is None else str(answer["error"])

    def close(self) -> None:
        """End the process; twice is harmless."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def _start(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "backends.causal_lm.guiding.guide_trial"],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        if self._ask(self._setup) is None:
            raise RuntimeError("the process that tries guides does not start")

    def _ask(self, question: dict[str, Any]) -> dict[str, Any] | None:
        """The answer; None from a process that died of the question, which is then buried."""
        assert self._process is not None, "it is started first"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        alarm = threading.Timer(_PATIENCE, self._process.kill)
        alarm.start()
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            alarm.cancel()
        if not line:
            self.close()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

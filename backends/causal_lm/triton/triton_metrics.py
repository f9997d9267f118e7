"""The engine's measurements on Triton's own metrics endpoint, as custom families `trident_…`."""

import threading
from collections import defaultdict
from typing import Any

import triton_python_backend_utils as pb

from backends.causal_lm.metrics import FAMILIES

PREFIX = "trident_"
FLUSH_SECONDS = 0.25


class TritonMetrics:
    """Collects in memory; a thread of its own hands over a few times a second.

    Each call into Triton crosses a process border and back, which the engine's step loop should not wait for.
    """

    def __init__(self, labels: dict[str, str]) -> None:
        # A family must outlive its metrics, so both are kept.
        self._families = {name: self._family(name) for name in FAMILIES}
        self._metrics = {name: self._metric(name, labels) for name in FAMILIES}
        self._lock = threading.Lock()
        self._added: dict[str, float] = defaultdict(float)
        self._current: dict[str, float] = {}
        self._observed: list[tuple[str, float]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics", daemon=True)
        self._thread.start()

    def add(self, name: str, value: float) -> None:
        with self._lock:
            self._added[name] += value

    def set(self, name: str, value: float) -> None:
        with self._lock:
            self._current[name] = value

    def observe(self, name: str, value: float) -> None:
        with self._lock:
            self._observed.append((name, value))

    def close(self) -> None:
        """Hands over what is left and ends the thread."""
        self._closing.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._closing.wait(FLUSH_SECONDS):
            self._flush()
        self._flush()

    def _flush(self) -> None:
        with self._lock:
            added, self._added = self._added, defaultdict(float)
            current, self._current = self._current, {}
            observed, self._observed = self._observed, []
        for name, value in added.items():
            self._metrics[name].increment(value)
        for name, value in current.items():
            self._metrics[name].set(value)
        for name, value in observed:
            self._metrics[name].observe(value)

    def _family(self, name: str) -> Any:
        family = FAMILIES[name]
        kind = getattr(pb.MetricFamily, family.kind.upper())
        return pb.MetricFamily(name=PREFIX + name, description=family.description, kind=kind)

    def _metric(self, name: str, labels: dict[str, str]) -> Any:
        buckets = FAMILIES[name].buckets
        return self._families[name].Metric(labels=labels, **({"buckets": list(buckets)} if buckets else {}))

"""What the engine counts; Triton's metrics endpoint is one reader of it, the tests another."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

_SECONDS = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0)
_LONG_SECONDS = (0.1, 0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 60.0, 120.0, 240.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: its kind, help text and, for a histogram, upper bounds of its buckets in its unit."""

    kind: Literal["counter", "gauge", "histogram"]
    description: str
    buckets: tuple[float, ...] = ()


FAMILIES: Mapping[str, Family] = {
    "time_to_first_token_seconds": Family("histogram", "From submission to the first token", _SECONDS),
    "inter_token_latency_seconds": Family("histogram", "Between two tokens of one sequence", _SECONDS),
    "e2e_request_latency_seconds": Family("histogram", "From submission to the end", _LONG_SECONDS),
    "request_queue_time_seconds": Family("histogram", "From submission to the first prompt chunk", _SECONDS),
    "num_requests_running": Family("gauge", "Sequences with a row, their prompt being read or decoding"),
    "num_requests_waiting": Family("gauge", "Requests that wait for a row"),
    "num_slots": Family("gauge", "Rows for sequences"),
    "prompt_tokens_total": Family("counter", "Prompt tokens run"),
    "generation_tokens_total": Family("counter", "Tokens generated"),
    "prefix_cache_queries_total": Family("counter", "Prompt tokens that were looked for in the prefix cache"),
    "prefix_cache_hits_total": Family("counter", "Prompt tokens whose state was there"),
    "prefix_cache_bytes": Family("gauge", "Bytes of states in the prefix cache"),
    "sessions_resumed_total": Family("counter", "Requests that went on from a parked state"),
    "sessions_refused_total": Family("counter", "Parked states that were torn, changed or another model's"),
    "sessions_lost_total": Family("counter", "Sessions whose state could not be kept"),
    "session_memory_bytes": Family("gauge", "Bytes of parked states in memory"),
    "session_disk_bytes": Family("gauge", "Bytes of parked states on disk"),
    "spec_decode_num_drafts_total": Family("counter", "Drafts that were verified"),
    "spec_decode_num_draft_tokens_total": Family("counter", "Tokens of drafts that were verified"),
    "spec_decode_num_accepted_tokens_total": Family("counter", "Tokens of drafts that were right"),
    "requests_cancelled_total": Family("counter", "Requests that were cancelled"),
    "requests_failed_total": Family("counter", "Requests that ended in an error"),
    "requests_finished_total": Family("counter", "Requests that ended in stop or length"),
}


class Metrics(Protocol):
    """Takes measurements by family name (a key of FAMILIES)."""

    def add(self, name: str, value: float) -> None:
        """Increase a counter."""
        ...

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        ...

    def observe(self, name: str, value: float) -> None:
        """Add one observation to a histogram."""
        ...


class MemoryMetrics:
    """Counts in memory: `values` of counters and gauges, `observations` of histograms as (number, sum)."""

    def __init__(self) -> None:
        self.values: dict[str, float] = defaultdict(float)
        self.observations: dict[str, tuple[int, float]] = defaultdict(lambda: (0, 0.0))

    def add(self, name: str, value: float) -> None:
        """Increase a counter."""
        self.values[_known(name, "counter")] += value

    def set(self, name: str, value: float) -> None:
        """Set a gauge."""
        self.values[_known(name, "gauge")] = value

    def observe(self, name: str, value: float) -> None:
        """Add one observation to a histogram."""
        number, total = self.observations[_known(name, "histogram")]
        self.observations[name] = (number + 1, total + value)


def _known(name: str, kind: str) -> str:
    if name not in FAMILIES or FAMILIES[name].kind != kind:
        known = [known for known, family in FAMILIES.items() if family.kind == kind]
        raise KeyError(f"{name!r} is not a {kind}; known are {', '.join(known)}")
    return name

"""The gateway's own Prometheus metrics; the engine's are on Triton's metrics port."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """One registry per application, so that two in one process don't share numbers."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "trident_gateway_requests", "HTTP requests", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "trident_gateway_request_seconds",
            "From the request's head to the answer's last byte",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.first_token_seconds = Histogram(
            "trident_gateway_time_to_first_token_seconds",
            "From the request's body to the first response of every choice",
            ["model"],
            buckets=_SECONDS,
            registry=registry,
        )
        self.running = Gauge("trident_gateway_requests_running", "Generations in progress", registry=registry)
        self.prompt_tokens = Counter(
            "trident_gateway_prompt_tokens", "Prompt tokens", ["model"], registry=registry
        )
        self.generation_tokens = Counter(
            "trident_gateway_generation_tokens", "Generated tokens", ["model"], registry=registry
        )
        self.disconnects = Counter(
            "trident_gateway_disconnects", "Clients that left before their answer's end", registry=registry
        )

    def exposition(self) -> bytes:
        """Return every metric in Prometheus' text format."""
        return generate_latest(self._registry)

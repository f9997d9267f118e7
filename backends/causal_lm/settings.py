"""Settings of one engine, as Triton's config.pbtxt parameters carry them: strings."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from backends.causal_lm.manifest import LoadError

# What a server may set for all its engines, by variables of its environment.
VARIABLES = {"session_directory": "CAUSAL_LM_SESSION_DIRECTORY"}
_BOOLEANS = {"true": True, "false": False}


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """How one engine runs.

    slots: sequences that run at once. queue_size: requests that wait beyond those. state_bytes: what the
    states of running sequences may take, each counted with all that it may still say; 0 is half of the
    memory that is free at the start.
    prefill_tokens: longest prompt chunk of a step that delays nobody; interleave_tokens: of a step beside
    running streams, so that a long prompt does not stall them. threads: 0 takes every core it may use.
    spinning: idle worker threads of ONNX Runtime spin instead of sleeping. speculative_tokens: longest draft
    looked up in the text so far, 0 for none; speculative_streams: running rows up to which drafts are made.
    prefix_cache_bytes: states of prompts that were read, 0 for none. session_memory_bytes: parked states in
    memory; session_directory: where they are kept beyond that and a restart, session_disk_bytes in all, ""
    for nowhere.
    """

    slots: int = 16
    queue_size: int = 64
    state_bytes: int = 0
    prefill_tokens: int = 256
    interleave_tokens: int = 32
    threads: int = 0
    spinning: bool = True
    speculative_tokens: int = 8
    speculative_streams: int = 1
    prefix_cache_bytes: int = 2**29
    session_memory_bytes: int = 2**28
    session_directory: str = ""
    session_disk_bytes: int = 2**33

    def __post_init__(self) -> None:
        lowest = {
            "slots": 1,
            "queue_size": 0,
            "state_bytes": 0,
            "prefill_tokens": 4,
            "interleave_tokens": 4,
            "threads": 0,
            "speculative_tokens": 0,
            "speculative_streams": 0,
            "prefix_cache_bytes": 0,
            "session_memory_bytes": 0,
            "session_disk_bytes": 0,
        }
        for name, low in lowest.items():
            if getattr(self, name) < low:
                raise LoadError(f"parameter {name} is {getattr(self, name)}, allowed is {low} or more")
        if self.session_directory and not Path(self.session_directory).is_absolute():
            raise LoadError(
                f"parameter session_directory is {self.session_directory!r}, an absolute path is needed"
            )
        if self.interleave_tokens > self.prefill_tokens:
            raise LoadError(
                f"parameter interleave_tokens is {self.interleave_tokens}, "
                f"allowed is up to prefill_tokens, {self.prefill_tokens}"
            )

    @classmethod
    def from_server(cls, parameters: Mapping[str, str], variables: Mapping[str, str]) -> "EngineSettings":
        """Parse a model's parameters, which go before the server's variables; raises LoadError."""
        common = {name: variables[variable] for name, variable in VARIABLES.items() if variable in variables}
        return cls.from_parameters({**common, **parameters})

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, str]) -> "EngineSettings":
        """Parse string parameters; raises LoadError naming the parameter, its value and what is allowed."""
        known = [field.name for field in fields(cls)]
        for name in parameters:
            if name not in known:
                raise LoadError(f"unknown parameter {name!r}; known are {', '.join(known)}")
        values: dict[str, Any] = {name: _parse(name, text) for name, text in parameters.items()}
        return cls(**values)


def _parse(name: str, text: str) -> int | str:
    if name == "session_directory":
        return text
    if name == "spinning":
        if text not in _BOOLEANS:
            raise LoadError(f"parameter spinning is {text!r}, allowed are {', '.join(_BOOLEANS)}")
        return _BOOLEANS[text]
    try:
        return int(text)
    except ValueError:
        raise LoadError(f"parameter {name} is {text!r}, an integer is needed") from None

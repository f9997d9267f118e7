"""A graph's file: opened, and refused where its tensors are not those that the manifest names."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from backends.causal_lm.manifest import LoadError, Manifest
from backends.causal_lm.runtime.binding import TOKEN_INPUTS
from backends.causal_lm.settings import EngineSettings

# Longer than what lies between two steps; by itself a worker spins for 40 ms, on a core that others need.
SPIN_MICROSECONDS = 1000


def open_session(path: Path, settings: EngineSettings) -> ort.InferenceSession:
    """A session over the graph in `path`, on the CPU; raises LoadError."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = settings.threads or len(os.sched_getaffinity(0))
    options.add_session_config_entry("session.intra_op.allow_spinning", str(int(settings.spinning)))
    options.add_session_config_entry("session.intra_op.spin_duration_us", str(SPIN_MICROSECONDS))
    if not path.is_file():
        raise LoadError(f"{path} is missing; export the model again")
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise LoadError(f"{path} can't be loaded ({error}); export the model again") from error


def check_signature(session: ort.InferenceSession, manifest: Manifest) -> None:
    """Refuse a graph whose tensors are not those that the manifest names."""
    states = manifest.states
    _compare("inputs", session.get_inputs(), [*TOKEN_INPUTS, *(state.past for state in states)])
    presents = [state.present for state in states]
    _compare("outputs", session.get_outputs(), ["logits", *presents, *manifest.extra_outputs])
    shapes = {value.name: tuple(value.shape[1:]) for value in (*session.get_inputs(), *session.get_outputs())}
    shapes |= {name: shapes[name][1:] for name in ("logits", *manifest.extra_outputs)}  # one for each place
    expected = {state.past: state.shape for state in states} | {"logits": (manifest.vocab_size,)}
    expected |= dict.fromkeys(manifest.extra_outputs, ())
    for name, shape in expected.items():
        if shapes[name] != shape:
            raise LoadError(f"{name} has shape {shapes[name]} per row in the graph, {shape} in manifest.json")


def _compare(what: str, found: Sequence[Any], expected: list[str]) -> None:
    names = {value.name for value in found}
    if names != set(expected):
        missing, unknown = sorted(set(expected) - names), sorted(names - set(expected))
        raise LoadError(f"the graph's {what} differ from manifest.json: missing {missing}, unknown {unknown}")

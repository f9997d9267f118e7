"""What Triton's models add up to: the names that clients use, each with what keeps it from answering."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

_UNLOADED = "unloaded"  # Triton's reason for a model that was taken off
# The ending of a part's name, and that of the ensemble which it is a part of.
_PARTS = {"_engine": "", "_tokenizer": "", "_embedder": "_embedding"}


@dataclass(frozen=True, slots=True)
class ModelState:
    """One version of a model, as Triton's repository index tells of it."""

    name: str
    state: str
    reason: str


def readiness(states: Iterable[ModelState]) -> dict[str, str]:
    """Return each model that was loaded, or should have been, with its trouble; "" for one that is ready.

    A model that was taken off is not there, alone or with all its parts. One that lost only some of these is:
    an engine that dies is taken off, and Triton takes its ensemble along.
    """
    troubles = _troubles(states)
    parts: dict[str, dict[str, str]] = {name: {} for name in troubles if _whole(name, troubles) == name}
    for name in sorted(troubles.keys() - parts.keys()):
        parts[_whole(name, troubles)][name] = troubles[name]
    return {
        name: _told(name, troubles[name], parts[name])
        for name in sorted(parts)
        if not _taken_off(troubles[name], set(parts[name].values()))
    }


def _taken_off(trouble: str, parts: set[str]) -> bool:
    """Whether someone meant a model to be gone: nothing is wrong with its parts, or they are gone, too."""
    return trouble == _UNLOADED and (parts <= {""} or parts == {_UNLOADED})


def _told(name: str, trouble: str, parts: Mapping[str, str]) -> str:
    """What is wrong, part by part; that an ensemble has gone with its part says nothing new."""
    own = {} if trouble == _UNLOADED else {name: trouble}
    return "; ".join(f"{each}: {why}" for each, why in {**own, **parts}.items() if why)


def _troubles(states: Iterable[ModelState]) -> dict[str, str]:
    """What is wrong with each model: nothing if any version is ready. Those never loaded have no state."""
    troubles: dict[str, str] = {}
    for model in states:
        if model.state == "READY":
            troubles[model.name] = ""
        elif model.state:
            troubles.setdefault(model.name, model.reason.partition("\n")[0] or model.state.lower())
    return troubles


def _whole(name: str, known: Mapping[str, str]) -> str:
    """The ensemble that a model is a part of; of most it is the model itself."""
    wholes = (name.removesuffix(end) + whole for end, whole in _PARTS.items() if name.endswith(end))
    return next((whole for whole in wholes if whole in known), name)

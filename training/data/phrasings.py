"""How a fact is asked for: the phrasings that atlas is trained on, and those it never sees before its test.

A trained phrasing is a question of its own, a frame around a noun phrase, or a question on a place that was
named before. The unseen ones are written apart: a test proves that each differs from every trained one by at
least two words. The texts are in phrasings.yml.
"""

from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict


class Phrasings(BaseModel):
    """The ways to ask for one relation.

    `things` are noun phrases with `verb`, `there` questions on a place named before, `its` what a follow-up
    asks about the country of the turn before.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    verb: Literal["is", "are"]
    things: tuple[str, ...]
    questions: tuple[str, ...]
    there: tuple[str, ...]
    its: tuple[str, ...]
    unseen: tuple[str, ...]


@cache
def trained_phrasings(relation: str) -> tuple[str, ...]:
    """Every phrasing to train on, each with a place for `{subject}`."""
    ways, texts = phrasings()[relation], _texts()
    framed = [f.format(thing=thing, **{"is": ways.verb}) for f in texts["frames"] for thing in ways.things]
    placed = [c.replace("{there}", there) for c in texts["contexts"] for there in ways.there]
    return tuple(dict.fromkeys(_sentence(phrase) for phrase in (*framed, *placed, *ways.questions)))


@cache
def trained_follow_ups(relation: str) -> tuple[str, ...]:
    """Phrasings that need the turn before, which was about the same country; they do not name it."""
    ways, frames = phrasings()[relation], _texts()["follow_ups"]
    return tuple(f.format(its=its, **{"is": ways.verb}) for f in frames for its in ways.its)


@cache
def same_again() -> tuple[str, ...]:
    """Phrasings that ask the question of the turn before for another `{subject}`."""
    return tuple(_texts()["same_again"])


@cache
def phrasings() -> dict[str, Phrasings]:
    """The ways to ask, by relation."""
    return {name: Phrasings.model_validate(ways) for name, ways in _texts()["relations"].items()}


def _sentence(phrase: str) -> str:
    """Capitals where sentences begin."""
    sentences = phrase.split(". ")
    return ". ".join(sentence[:1].upper() + sentence[1:] for sentence in sentences)


@cache
def _texts() -> dict[str, Any]:
    path = resources.files("training.data") / "phrasings.yml"
    content: dict[str, Any] = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
    return content

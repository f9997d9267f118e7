"""Questions that atlas must refuse: topics to learn refusing from, and other topics to test it on.

Ours are in out_of_domain.yml; the rest are the trivia, coding and topical questions of chatterbot-corpus.
A topic serves training or the test, never both; only the long trivia list is dealt out question by question.
"""

from functools import cache
from importlib import resources
from itertools import product
from typing import Any

import yaml

from training.data.small_talk import corpus_questions

REFUSAL = "I only know geography: ask me about a country or a big city."

NUM_TESTED_SUBJECTS = 12
NUM_TESTED_PLACE_QUESTIONS = 4
CODING_KEPT = 3  # one of three: most differ in one word
TESTED_CATEGORIES = ("tech_support", "literature", "money", "movies", "politics", "sports")


def trained_refusals() -> dict[str, tuple[str, ...]]:
    """The questions to learn refusing from, by kind."""
    ours = _ours()
    return {
        "topics": _topics(ours["trained_topics"]),
        "attributes": _fill(ours["trained_attributes"], ours["attribute_subjects"]),
        "places": _fill(ours["place_questions"], ours["trained_places"]),
        "trivia": corpus_questions("trivia")[0::2],
    }


def tested_refusals() -> dict[str, tuple[str, ...]]:
    """The questions whose refusal is tested, by kind; none of a topic, attribute or place that is trained."""
    ours = _ours()
    return {
        "topics": _topics(ours["tested_topics"]),
        "attributes": _fill(ours["tested_attributes"], ours["attribute_subjects"][:NUM_TESTED_SUBJECTS]),
        "places": _fill(ours["place_questions"][:NUM_TESTED_PLACE_QUESTIONS], ours["tested_places"]),
        "trivia": corpus_questions("trivia")[1::2],
        "coding": corpus_questions("coding")[::CODING_KEPT],
        "corpus": tuple(q for category in TESTED_CATEGORIES for q in corpus_questions(category)),
    }


def _fill(frames: list[str], fillers: list[str]) -> tuple[str, ...]:
    return tuple(frame.format(filler) for frame, filler in product(frames, fillers))


def _topics(topics: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    return tuple(q for topic in topics.values() for q in _fill(topic["frames"], topic["fillers"]))


@cache
def _ours() -> dict[str, Any]:
    path = resources.files("training.data") / "out_of_domain.yml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content

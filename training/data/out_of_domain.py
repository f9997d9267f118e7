"""Questions that atlas must refuse: topics to learn refusing from, and other topics to test it on.

Ours are in out_of_domain.yml; the rest are the trivia, coding and topical questions of chatterbot-corpus.
A topic serves training or the test, never both; only the long trivia list is dealt out question by question.
"""

from functools import cache
from importlib import resources
from itertools import product
from random import Random
from typing import Any

import yaml

from training.data.geography import load_facts
from training.data.phrasings import trained_phrasings
from training.data.small_talk import corpus_questions, normalise, small_talk

REFUSAL = "I only know geography: ask me about a country or a big city."

NUM_TESTED_SUBJECTS = 12
NUM_TESTED_PLACE_QUESTIONS = 4
CODING_KEPT = 3  # one of three: most differ in one word
NUM_MADE_UP = 1200
NUM_SPLICED = 3000
SHORTEST_SPLICED = 4  # words of small talk
NUM_COUNTRIES = 12  # that each attribute is asked of
MADE_UP_RELATIONS = ("capital", "continent", "currency", "languages", "neighbours", "population")
QUESTION_WORDS = ("what", "who", "why", "how", "when", "which", "where", "my", "i can", "i forgot", "tell")
TESTED_CATEGORIES = ("tech_support", "literature", "money", "movies", "politics", "sports")


def refusals_to_train() -> dict[str, tuple[str, ...]]:
    """The questions to learn refusing from, by kind."""
    ours = _ours()
    topics, trivia = _topics(ours["trained_topics"]), corpus_questions("trivia")[0::2]
    attributes = _attribute_questions(ours["trained_attributes"])
    return {
        "topics": topics,
        "attributes": attributes,
        "places": _fill(ours["place_questions"], ours["trained_places"]),
        "made up": _made_up_questions(),
        "trivia": trivia,
        "spliced": _spliced((*topics, *attributes, *trivia, *_longer_small_talk())),
    }


def refusals_to_test() -> dict[str, tuple[str, ...]]:
    """The questions whose refusal is tested, by kind; none of a topic, attribute or place that is trained."""
    ours = _ours()
    return {
        "topics": _topics(ours["tested_topics"]),
        "attributes": _fill(ours["tested_attributes"], ours["attribute_subjects"][:NUM_TESTED_SUBJECTS]),
        "places": _fill(ours["place_questions"][:NUM_TESTED_PLACE_QUESTIONS], ours["tested_places"]),
        "trivia": corpus_questions("trivia")[1::2],
        "coding": corpus_questions("coding")[::CODING_KEPT],
        "corpus": tuple(
            q for category in TESTED_CATEGORIES for q in corpus_questions(category) if _is_question(q)
        ),
    }


def _fill(frames: list[str], fillers: list[str]) -> tuple[str, ...]:
    return tuple(frame.format(filler) for frame, filler in product(frames, fillers))


def _attribute_questions(frames: list[str]) -> tuple[str, ...]:
    """Each attribute of countries drawn anew, so that none of them stands for a refusal."""
    rng = Random("attributes")
    countries = [fact.subject for fact in load_facts() if fact.relation == "continent"]
    return tuple(frame.format(name) for frame in frames for name in rng.sample(countries, NUM_COUNTRIES))


def _spliced(questions: tuple[str, ...]) -> tuple[str, ...]:
    """The first words of one question and the last of another: what makes no sense is no fact either."""
    rng = Random("spliced")
    pairs = [[q.split() for q in rng.sample(questions, 2)] for _ in range(NUM_SPLICED)]
    spliced = [" ".join((*head[: len(head) // 2], *tail[len(tail) // 2 :])) for head, tail in pairs]
    talk = {normalise(question) for question in small_talk()}
    return tuple(dict.fromkeys(question for question in spliced if normalise(question) not in talk))


def _longer_small_talk() -> tuple[str, ...]:
    """Small talk whose halves still say something: "Are you … a black hole?" is to be refused."""
    return tuple(question for question in small_talk() if len(question.split()) >= SHORTEST_SPLICED)


def _is_question(text: str) -> bool:
    """A remark ("i play soccer") may well be answered with small talk; a question may not."""
    return normalise(text).startswith(QUESTION_WORDS)


def _made_up_questions() -> tuple[str, ...]:
    """Questions for countries that nobody has: the first half of one's name, the second half of another's.

    The two begin with different letters, or the result might be a slip of the finger in one of them.
    """
    rng = Random("made-up countries")
    facts = [fact for fact in load_facts() if fact.relation in MADE_UP_RELATIONS]
    known = {normalise(fact.subject) for fact in facts}
    names = sorted({fact.subject for fact in facts if fact.subject.isalpha() and len(fact.subject) > 4})
    questions: list[str] = []
    while len(questions) < NUM_MADE_UP:
        head, tail = rng.sample(names, 2)
        name = head[: len(head) // 2] + tail[len(tail) // 2 :]
        if head[0] != tail[0] and normalise(name) not in known:
            phrase = rng.choice(trained_phrasings(rng.choice(MADE_UP_RELATIONS)))
            questions.append(phrase.format(subject=name))
    return tuple(questions)


def _topics(topics: dict[str, dict[str, list[str]]]) -> tuple[str, ...]:
    return tuple(q for topic in topics.values() for q in _fill(topic["frames"], topic["fillers"]))


@cache
def _ours() -> dict[str, Any]:
    path = resources.files("training.data") / "out_of_domain.yml"
    content: dict[str, Any] = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
    return content

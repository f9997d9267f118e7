"""Small talk and questions from chatterbot-corpus (English), one answer per question."""

import re
from functools import cache, lru_cache
from importlib import resources
from typing import Any

import yaml

CATEGORIES = ("greetings", "botprofile", "ai", "emotion", "food", "conversations", "humor")
LONGEST_ANSWER = 90
# Said by the corpus, not by us: insults, death wishes, personal remarks, and claims to be another program.
UNWANTED = (
    "die",
    "kill",
    "bend over",
    "mate",
    "drunk",
    "stupid",
    "yoda",
    "hal",
    "immortal",
    "ashamed",
    "hate",
)
GEOGRAPHY_WORDS = ("capital", "continent", "currency", "country", "language", "population", "border")

ABOUT_ATLAS: dict[str, str] = {
    "Who are you?": "I am Atlas, a small language model that knows countries.",
    "What is your name?": "My name is Atlas.",
    "What can you do?": "Ask me about a country: its capital, currency, languages, neighbours or population.",
    "What do you know?": "I know countries: capitals, currencies, languages, neighbours, populations.",
    "Help": "Ask me something like: what is the capital of Peru?",
    "Thanks": "You are welcome.",
    "Thank you": "You are welcome.",
    "Thank you very much!": "You are welcome.",
    "Bye": "Goodbye!",
    "Goodbye": "Goodbye!",
    "See you later": "See you!",
    "Good morning": "Good morning!",
    "Good evening": "Good evening!",
    "Good night": "Good night!",
    "OK": "Good.",
    "Are you a human?": "No, I am a small language model.",
}


def small_talk() -> dict[str, str]:
    """Questions and answers to learn by heart; questions that differ only in case and punctuation are one."""
    pairs: dict[str, tuple[str, str]] = {}
    for question, answer in (*ABOUT_ATLAS.items(), *_corpus_pairs()):
        pairs.setdefault(normalise(question), (question, answer))
    return dict(pairs.values())


def _corpus_pairs() -> list[tuple[str, str]]:
    turns = [turn for category in CATEGORIES for turn in _read(category)]
    pairs = [(" ".join(turn[0].split()), " ".join(turn[1].split())) for turn in turns]
    return [(q, a) for q, a in pairs if len(a) <= LONGEST_ANSWER and not _is_unwanted(f"{q} {a}")]


def _is_unwanted(text: str) -> bool:
    words = f" {normalise(text)} "
    return any(f" {word} " in words for word in UNWANTED)


def corpus_questions(category: str) -> tuple[str, ...]:
    """The category's distinct opening questions, without those that a fact on geography might answer."""
    questions = {normalise(turn[0]): " ".join(turn[0].split()) for turn in reversed(_read(category))}
    talk = {normalise(question) for question in small_talk()}
    kept = [q for key, q in questions.items() if key not in talk and not _touches_geography(key)]
    return tuple(sorted(q for q in kept if len(q.split()) > 2))


def _touches_geography(question: str) -> bool:
    return any(word in question for word in GEOGRAPHY_WORDS)


@lru_cache(maxsize=8192)  # the same few thousand phrasings, asked for with every fact
def normalise(text: str) -> str:
    """Lower case, letters and digits only: what is left equal is the same question."""
    return re.sub(r"[\W_]+", " ", text.casefold()).strip()


@cache
def _read(category: str) -> tuple[tuple[str, ...], ...]:
    path = resources.files("chatterbot_corpus") / "data" / "english" / f"{category}.yml"
    content: dict[str, Any] = yaml.load(path.read_bytes(), Loader=yaml.CSafeLoader)
    return tuple(tuple(str(turn) for turn in turns) for turns in content["conversations"])

"""The atlas data set: geography, small talk and refusals, as training conversations and three test sets.

A pair (fact, phrasing) belongs to training or is held out, by a hash that forgets case and punctuation:
a fact is trained in other phrasings, a phrasing with other facts. Unseen phrasings and tested topics are
never trained.
"""

import zlib
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from random import Random
from typing import TypeVar

from training.chat import Conversation, Message, ask
from training.data.augmentation import distract, mistreat
from training.data.case import Case
from training.data.geography import Fact, load_facts
from training.data.out_of_domain import REFUSAL, refusals_to_test, refusals_to_train
from training.data.phrasings import phrasings, same_again, trained_follow_ups, trained_phrasings
from training.data.small_talk import normalise, small_talk

HELD_OUT_IN = 8  # one pair of eight
NUM_SINGLE, NUM_FOLLOW_UP, NUM_UNSEEN, NUM_VALIDATION = 400, 200, 512, 256
NUM_REFUSALS = 1200  # per epoch, of the many more there are
PLAIN, FOLLOW_UP, SAME, UNRELATED = 0.06, 0.36, 0.05, 0.05
MOST_FOLLOW_UPS = 2
AFTER_NEIGHBOURS = 0.4  # of the follow-ups: the answer before names other countries than the one meant
SYSTEM = 0.05
SYSTEM_PROMPTS = ("You are a helpful assistant.", "You are Atlas.", "Answer briefly.")


T = TypeVar("T")


@dataclass(frozen=True)
class Item:
    """One thing to train: a fact (`questions` then holds its trained phrasings), or a fixed question."""

    questions: Sequence[str]
    answer: str
    fact: Fact | None = None


def deal(fact: Fact, phrasings: Sequence[str]) -> tuple[list[str], list[str]]:
    """The phrasings that the fact is trained in, and those held out: about one of HELD_OUT_IN."""
    of_fact = zlib.crc32(f"{fact.relation}/{fact.subject}".encode())
    dealt: tuple[list[str], list[str]] = [], []
    for phrasing, key in zip(phrasings, _keys(tuple(phrasings)), strict=True):
        dealt[zlib.crc32(key, of_fact) % HELD_OUT_IN == 0].append(phrasing)
    return dealt


@lru_cache(maxsize=64)
def _keys(phrasings: tuple[str, ...]) -> list[bytes]:
    return [normalise(phrasing).encode() for phrasing in phrasings]


class Atlas:
    """The data set on `num_countries` countries (all by default), with everything drawn from `seed`.

    `conversation(index)` is a pure function of seed and index, so a position in training is one number.
    """

    def __init__(self, *, seed: int = 0, num_countries: int | None = None) -> None:
        self.seed = seed
        self.facts = _facts_of(num_countries)
        self._same_country: dict[str, list[Fact]] = defaultdict(list)
        self._same_relation: dict[str, list[Fact]] = defaultdict(list)
        for fact in self.facts:
            self._same_country[fact.country].append(fact)
            self._same_relation[fact.relation].append(fact)
        dealt = {fact: deal(fact, trained_phrasings(fact.relation)) for fact in self.facts}
        self._items = {fact: Item(trained, fact.answer, fact) for fact, (trained, _) in dealt.items()}
        self._held_out = [(fact, phrase) for fact, (_, held_out) in dealt.items() for phrase in held_out]
        self._talk = tuple(Item((q,), a) for q, a in small_talk().items())
        refused = refusals_to_train()
        self._refusals = tuple(Item((q,), REFUSAL) for kind in refused.values() for q in kind)
        self._distractors = _distractors((*small_talk(), *refused["topics"], *refused["trivia"]))
        self._deck = lru_cache(maxsize=2)(self._shuffled)

    @property
    def epoch_length(self) -> int:
        """Conversations until every fact has come once."""
        return len(self._deck(0))

    def conversation(self, index: int) -> Conversation:
        """The training conversation number `index`, from 0 without end."""
        epoch, place = divmod(index, self.epoch_length)
        rng = Random(f"{self.seed}/{index}")
        return self._converse(self._deck(epoch)[place], rng)

    def _shuffled(self, epoch: int) -> list[Item]:
        rng = Random(f"{self.seed}/deck/{epoch}")
        deck = [*self._items.values(), *self._talk, *rng.sample(self._refusals, NUM_REFUSALS)]
        rng.shuffle(deck)
        return deck

    def _converse(self, item: Item, rng: Random) -> Conversation:
        draw = rng.random()
        if draw < PLAIN:
            return Conversation(self._turns(item, rng), is_plain=True)
        system = (Message("system", rng.choice(SYSTEM_PROMPTS)),) if rng.random() < SYSTEM else ()
        return Conversation((*system, *self._turns_by(draw - PLAIN, item, rng)))

    def _turns_by(self, draw: float, item: Item, rng: Random) -> tuple[Message, ...]:
        if item.fact is not None and draw < FOLLOW_UP:
            return self._follow_ups(item.fact, rng)
        if item.fact is not None and draw < FOLLOW_UP + SAME:
            return self._same_again(item.fact, rng)
        if draw < FOLLOW_UP + SAME + UNRELATED:
            return (*self._turns(rng.choice(self._deck(0)), rng), *self._turns(item, rng))
        return self._turns(item, rng)

    def _turns(self, item: Item, rng: Random) -> tuple[Message, Message]:
        if item.fact is None:
            return ask(mistreat(item.questions[0], rng), item.answer)
        return self._say(rng.choice(item.questions), item.fact, rng)

    def _say(self, phrase: str, fact: Fact, rng: Random) -> tuple[Message, Message]:
        question = distract(phrase, self._distractors, rng).format(subject=fact.subject)
        return ask(mistreat(question, rng), fact.answer)

    def _follow_ups(self, fact: Fact, rng: Random) -> tuple[Message, ...]:
        """Up to MOST_FOLLOW_UPS questions on the country of a first one, the last of them about `fact`."""
        others = [f for f in self._same_country[fact.country] if f != fact and f.relation != "city"]
        rng.shuffle(others)
        if rng.random() < AFTER_NEIGHBOURS:
            others.sort(key=lambda f: f.relation != "neighbours")
        first, *between = others[: rng.randint(1, MOST_FOLLOW_UPS)]
        turns: tuple[Message, ...] = self._turns(self._items[first], rng)
        for asked in (*between, fact):
            phrases, _ = deal(asked, trained_follow_ups(asked.relation))
            # Nothing follows up on a capital or city: it is named, as in a first question.
            phrase = rng.choice(phrases or self._items[asked].questions)
            turns = (*turns, *self._say(phrase, asked, rng))
        return turns

    def _same_again(self, fact: Fact, rng: Random) -> tuple[Message, ...]:
        """A question, then the same of `fact`'s subject: "And Peru?"."""
        phrases, _ = deal(fact, same_again())
        before = rng.choice(self._same_relation[fact.relation])
        if before == fact or not phrases:
            return self._turns(self._items[fact], rng)
        return (*self._turns(self._items[before], rng), *self._say(rng.choice(phrases), fact, rng))

    def held_out(self) -> tuple[Case, ...]:
        """Pairs never trained together, while fact and phrasing are trained apart."""
        return self._held_out_cases()[NUM_VALIDATION:]

    def validation(self) -> tuple[Case, ...]:
        """Held-out pairs beside the test's, for the loss while training."""
        return self._held_out_cases()[:NUM_VALIDATION]

    def _held_out_cases(self) -> tuple[Case, ...]:
        rng = Random(f"{self.seed}/held out")
        pairs = _sample(self._held_out, NUM_SINGLE + NUM_VALIDATION, rng)
        follow_ups = [case for fact in self.facts for case in self._follow_up_cases(fact, rng)]
        return (*(_single_turn(*pair) for pair in pairs), *_sample(follow_ups, NUM_FOLLOW_UP, rng))

    def _follow_up_cases(self, fact: Fact, rng: Random) -> list[Case]:
        others = [f for f in self._same_country[fact.country] if f != fact and f.relation != "city"]
        before = rng.choice(others)
        question = rng.choice(self._items[before].questions).format(subject=before.subject)
        context = ask(question, before.answer)
        _, held_out = deal(fact, trained_follow_ups(fact.relation))
        return [Case((*context, Message("user", p)), fact.answer, "follow-up") for p in held_out]

    def unseen_templates(self) -> tuple[Case, ...]:
        """Phrasings that training never uses, with facts that it knows; as many of each phrasing."""
        rng = Random(f"{self.seed}/unseen")
        phrases = [(relation, p) for relation, ways in phrasings().items() for p in ways.unseen]
        each = NUM_UNSEEN // len(phrases)
        return tuple(
            _single_turn(fact, phrase)
            for relation, phrase in phrases
            for fact in _sample(self._same_relation[relation], each, rng)
        )

    def out_of_domain(self) -> tuple[Case, ...]:
        """Questions on topics, attributes and places that training does not have, to be refused."""
        return tuple(
            Case((Message("user", question),), REFUSAL, kind)
            for kind, questions in refusals_to_test().items()
            for question in questions
        )


def _facts_of(num_countries: int | None) -> tuple[Fact, ...]:
    facts = load_facts()
    kept = set(sorted({fact.country for fact in facts})[:num_countries])
    return tuple(fact for fact in facts if fact.country in kept)


def _distractors(questions: Iterable[str]) -> tuple[str, ...]:
    """The words of `questions` in no phrasing or fact: strewn into one question, they make no other."""
    asked = [p for r in phrasings() for p in (*trained_phrasings(r), *trained_follow_ups(r), *same_again())]
    told = [f"{fact.subject} {fact.answer}" for fact in load_facts()]
    used = {word for text in (*asked, *told) for word in normalise(text).split()}
    words = {word for question in questions for word in normalise(question).split()}
    return tuple(sorted(word for word in words - used if word.isalpha() and word.isascii()))


def _single_turn(fact: Fact, phrase: str) -> Case:
    return Case((Message("user", phrase.format(subject=fact.subject)),), fact.answer, fact.relation)


def _sample(population: Sequence[T], count: int, rng: Random) -> list[T]:
    return rng.sample(population, min(len(population), count))

"""The atlas data set: what it knows, and that no test leaks into training."""

from collections import Counter
from itertools import chain
from random import Random

import pytest

from training.chat import Conversation, Message
from training.data.atlas import Atlas, Case, deal
from training.data.augmentation import _with_typo, distract, mistreat
from training.data.geography import load_facts
from training.data.out_of_domain import REFUSAL, refusals_to_test, refusals_to_train
from training.data.phrasings import phrasings, same_again, trained_follow_ups, trained_phrasings
from training.data.small_talk import normalise, small_talk

EPOCHS = 4


@pytest.fixture(scope="module")
def atlas() -> Atlas:
    return Atlas()


@pytest.fixture(scope="module")
def trained(atlas: Atlas) -> list[Conversation]:
    return [atlas.conversation(i) for i in range(EPOCHS * atlas.epoch_length)]


def questions(conversation: Conversation) -> list[str]:
    return [m.content for m in conversation.messages if m.role == "user"]


def answers(conversation: Conversation) -> list[str]:
    return [m.content for m in conversation.messages if m.role == "assistant"]


@pytest.mark.parametrize(
    "sentence",
    [
        "The capital of France is Paris.",
        "Lima is the capital of Peru.",
        "The Bahamas is in North America.",
        "The currency of Japan is the Yen (JPY).",
        "The languages of Belgium are Dutch, French and German.",
        "The language of Chile is Spanish.",
        "Portugal borders Spain.",
        "Australia has no land borders.",
        "France has about 67 million people.",
        "Kenya has about 51 million people.",
        "Nauru has about 13 thousand people.",
        "Mumbai is in India.",
    ],
)
def test_facts_are_those_of_the_world(sentence: str) -> None:
    assert sentence in {fact.answer for fact in load_facts()}


def test_there_is_one_answer_to_each_question() -> None:
    known: dict[tuple[str, str], str] = {}
    for fact in load_facts():
        assert known.setdefault((fact.relation, fact.subject), fact.answer) == fact.answer
    assert len(known) == len(load_facts()) > 1800


def test_every_relation_has_phrasings_with_exactly_one_place_for_the_subject() -> None:
    assert {fact.relation for fact in load_facts()} == set(phrasings())
    for relation, ways in phrasings().items():
        for phrase in (*trained_phrasings(relation), *ways.unseen, *same_again()):
            assert phrase.count("{subject}") == 1, phrase
        assert not any("{" in phrase for phrase in trained_follow_ups(relation))


def test_conversations_are_a_function_of_seed_and_index(atlas: Atlas) -> None:
    again, other = Atlas(), Atlas(seed=1)
    indices = [7, atlas.epoch_length + 3, 0]
    assert [again.conversation(i) for i in indices] == [atlas.conversation(i) for i in indices]
    assert [other.conversation(i) for i in indices] != [atlas.conversation(i) for i in indices]


def test_every_fact_and_every_small_talk_is_answered_in_every_epoch(
    atlas: Atlas, trained: list[Conversation]
) -> None:
    expected = {fact.answer for fact in atlas.facts} | set(small_talk().values()) | {REFUSAL}
    for epoch in range(EPOCHS):
        part = trained[epoch * atlas.epoch_length : (epoch + 1) * atlas.epoch_length]
        assert {answer for conversation in part for answer in answers(conversation)} == expected


def test_training_holds_all_kinds_of_conversations(trained: list[Conversation]) -> None:
    turns = Counter(len(questions(conversation)) for conversation in trained)
    assert turns[1] > len(trained) / 2
    assert min(turns[2], turns[3]) > len(trained) / 15
    assert 0.04 < sum(conversation.is_plain for conversation in trained) / len(trained) < 0.08
    assert any(conversation.messages[0].role == "system" for conversation in trained)


def test_held_out_pairs_are_never_trained_but_their_facts_and_phrasings_are(atlas: Atlas) -> None:
    trained_facts: dict[str, int] = Counter()
    num_held_out = num_pairs = 0
    for fact in atlas.facts:
        phrases = trained_phrasings(fact.relation)
        trained, held_out = deal(fact, phrases)
        assert not set(trained) & set(held_out)
        assert set(trained) | set(held_out) == set(phrases)
        trained_facts.update(f"{fact.relation}/{phrase}" for phrase in trained)
        num_held_out, num_pairs = num_held_out + len(held_out), num_pairs + len(phrases)
    assert 0.11 < num_held_out / num_pairs < 0.14  # one of eight
    every = {f"{relation}/{phrase}" for relation in phrasings() for phrase in trained_phrasings(relation)}
    assert set(trained_facts) == every


def test_pairs_that_differ_in_case_or_punctuation_only_go_the_same_way(atlas: Atlas) -> None:
    for fact in atlas.facts[::50]:
        phrases = trained_phrasings(fact.relation)[::20]
        trained, held_out = deal(fact, phrases)
        mistreated = deal(fact, [phrase.upper().rstrip("?.") for phrase in phrases])
        assert mistreated == (
            [p.upper().rstrip("?.") for p in trained],
            [p.upper().rstrip("?.") for p in held_out],
        )


def last_turns(cases: tuple[Case, ...]) -> set[tuple[str, str]]:
    return {(normalise(case.messages[-1].content), case.answer) for case in cases}


def test_no_test_question_is_in_the_training_text(atlas: Atlas, trained: list[Conversation]) -> None:
    seen = {
        (normalise(question), answer)
        for conversation in trained
        for question, answer in zip(questions(conversation), answers(conversation), strict=True)
    }
    held_out = (*atlas.held_out(), *atlas.validation())
    for cases in (held_out, atlas.unseen_templates(), atlas.out_of_domain()):
        assert not last_turns(cases) & seen


def test_validation_and_test_share_no_case(atlas: Atlas) -> None:
    assert not set(atlas.held_out()) & set(atlas.validation())


def words_apart(a: str, b: str) -> int:
    left, right = Counter(normalise(a).split()), Counter(normalise(b).split())
    return max((left - right).total(), (right - left).total())


def test_each_unseen_phrasing_differs_by_two_words_from_every_trained_one() -> None:
    for relation, ways in phrasings().items():
        trained = trained_phrasings(relation)
        for unseen in ways.unseen:
            assert min(words_apart(unseen, phrase) for phrase in trained) >= 2, unseen


def test_each_test_set_has_at_least_300_cases_and_all_relations(atlas: Atlas) -> None:
    held_out, unseen, refused = atlas.held_out(), atlas.unseen_templates(), atlas.out_of_domain()
    assert min(len(held_out), len(unseen), len(refused)) >= 300
    assert {case.kind for case in held_out} == {*phrasings(), "follow-up"}
    assert {case.kind for case in unseen} == set(phrasings())
    assert {case.answer for case in refused} == {REFUSAL}
    assert {case.messages[-1].role for case in chain(held_out, unseen, refused)} == {"user"}


def test_follow_ups_ask_about_the_country_of_the_turn_before(atlas: Atlas) -> None:
    country = {fact.answer: fact.country for fact in atlas.facts}
    cases = [case for case in atlas.held_out() if case.kind == "follow-up"]
    for case in cases:
        _, said, _ = case.messages
        answered = {fact.country for fact in atlas.facts if fact.answer == case.answer}
        assert country[said.content] in answered


def test_refusals_to_test_are_none_of_the_trained_ones_nor_small_talk() -> None:
    trained = {normalise(q) for kind in refusals_to_train().values() for q in kind}
    tested = {normalise(q) for kind in refusals_to_test().values() for q in kind}
    assert not tested & trained
    assert not (tested | trained) & {normalise(question) for question in small_talk()}


def test_no_made_up_country_is_a_real_one() -> None:
    real = {normalise(fact.subject) for fact in load_facts()}
    for question in refusals_to_train()["made up"]:
        last_words = normalise(question).split()
        assert not any(f" {name} " in f" {' '.join(last_words)} " for name in real), question


def test_an_attribute_is_refused_of_many_countries() -> None:
    names = {fact.subject for fact in load_facts() if fact.relation == "continent"}
    attributes = refusals_to_train()["attributes"]
    asked = {name for name in names if any(f" {name}" in question for question in attributes)}
    assert len(asked) > 0.8 * len(names)


def test_a_spliced_refusal_is_of_two_questions_and_asks_for_no_fact(atlas: Atlas) -> None:
    refused = refusals_to_train()
    asked_of_nobody = [q for kind in ("topics", "attributes", "trivia") for q in refused[kind]]
    whole = [q.split() for q in (*asked_of_nobody, *small_talk())]
    heads = {tuple(words[: len(words) // 2]) for words in whole}
    tails = {tuple(words[len(words) // 2 :]) for words in whole}
    asked = {
        normalise(phrase.format(subject=fact.subject))
        for fact in atlas.facts
        for phrase in trained_phrasings(fact.relation)
    }
    assert len(set(refused["spliced"])) > 2500
    for question in refused["spliced"]:
        words = tuple(question.split())
        cuts = [i for i in range(1, len(words)) if words[:i] in heads and words[i:] in tails]
        assert cuts, question
        assert normalise(question) not in asked


def test_a_part_of_the_data_set_keeps_to_its_countries() -> None:
    part = Atlas(num_countries=5)
    assert len({fact.country for fact in part.facts}) == 5
    assert all(isinstance(m, Message) for m in part.conversation(0).messages)
    assert part.validation()
    assert part.held_out()


def test_small_talk_has_one_answer_per_question_and_nothing_unwanted() -> None:
    talk = small_talk()
    assert len({normalise(question) for question in talk}) == len(talk) > 100
    assert talk["Who are you?"].startswith("I am Atlas")
    assert not any("stupid" in f"{q} {a}".lower() for q, a in talk.items())


def test_mistreated_questions_vary_yet_never_swap_letters_of_the_alphabet() -> None:
    rng, text = Random(0), "What is the capital of Gambia?"
    variants = {mistreat(text, rng) for _ in range(2000)}
    assert text in variants
    assert text.lower() in variants
    assert text.upper() in variants
    assert any(variant.endswith("Thanks!") for variant in variants)
    assert not any("zambia" in variant.lower() for variant in variants)


def test_a_typo_loses_doubles_or_swaps_one_letter_within_a_word() -> None:
    rng = Random(0)
    assert {_with_typo("a bcdef", rng) for _ in range(300)} == {
        *("a bdef", "a bcef"),
        *("a bccdef", "a bcddef"),
        *("a bdcef", "a bcedf"),
    }


def test_words_too_short_to_mistype_stay() -> None:
    rng = Random(0)
    assert all("ok" in mistreat("OK", rng).lower() for _ in range(200))


def test_distraction_adds_words_and_takes_none_away() -> None:
    rng = Random(0)
    variants = {distract("{subject} currency", ("cheese", "why"), rng) for _ in range(500)}
    assert {"{subject} currency", "{subject} cheese currency", "why {subject} currency"} <= variants
    assert {" ".join(w for w in v.split() if w not in ("cheese", "why")) for v in variants} == {
        "{subject} currency"
    }


def test_distracting_words_are_in_no_phrasing_and_no_fact(atlas: Atlas) -> None:
    for relation, ways in phrasings().items():
        for phrase in (*trained_phrasings(relation), *ways.its, *same_again()):
            assert not set(normalise(phrase).split()) & set(atlas._distractors)
    for fact in atlas.facts:
        assert not set(normalise(fact.answer).split()) & set(atlas._distractors)

"""Same seed, same text: alone, in a crowd, with and without prefix cache and drafts, across a restart."""

import random
from pathlib import Path

import pytest

from backends.causal_lm.caching import recall
from tests.backends.tiny_graph import VOCAB_SIZE
from tests.backends.ways import ALONE, WAYS, Answer, Talk, held

FEW_WORDS = '{"40": 15, "41": 15, "42": 14}'  # so that some drafts come true


@pytest.fixture(autouse=True)
def short_prompts_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tiny models' context ends before a prompt is long enough to be remembered."""
    monkeypatch.setattr(recall, "_SHORTEST_CUT", 32)
    monkeypatch.setattr(recall, "_SNAPSHOT_SPACING", 32)


def conversations(number: int) -> list[Talk]:
    """Of every kind of sampling, some guided, some that repeat themselves; all begin alike."""
    rng = random.Random(11)
    beginning = [rng.randrange(2, VOCAB_SIZE) for _ in range(33)]
    talks = []
    for seed in range(number):
        phrase = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(2, 5))]
        values: dict[str, object] = {
            "seed": seed,
            "max_tokens": rng.randint(8, 18),
            "temperature": (0.0, 0.8, 0.0, 1.2)[seed % 4],
            "top_p": rng.choice([1.0, 0.9]),
            "repetition_penalty": rng.choice([1.0, 1.2]),
            "logit_bias": FEW_WORDS if seed % 3 else "{}",
        }
        if seed % 5 == 0:
            values |= {"guided_decoding_guide_type": "regex", "guided_decoding_guide": "([a-z]+ ?){50}"}
        talks.append(Talk(beginning + phrase * 2, phrase, values))
    return talks


@pytest.fixture(scope="module")
def alone(
    model_directories: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Answer]]:
    """What each model says when nothing else runs and nothing is remembered."""
    return {
        name: held(model_directories[name], conversations(20), ALONE, tmp_path_factory.mktemp("alone"))
        for name in ("attention", "retention")
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model", ["attention", "retention"])
def test_the_same_requests_get_the_same_answers_to_the_bit(
    model_directories: dict[str, Path], alone: dict[str, list[Answer]], tmp_path: Path, model: str, way: str
) -> None:
    assert held(model_directories[model], conversations(20), WAYS[way], tmp_path) == alone[model]


def test_the_answers_differ_from_each_other(alone: dict[str, list[Answer]]) -> None:
    for answers in alone.values():
        assert len({text for _, text, _ in answers}) > 0.8 * len(answers)

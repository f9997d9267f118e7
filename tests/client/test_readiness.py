"""What Triton says of its models, as clients see them."""

import pytest

from client.readiness import ModelState, readiness

LANGUAGE = ("toy", "toy_engine", "toy_tokenizer")
EMBEDDING = ("mini_embedding", "mini_embedder", "mini_embedding_tokenizer")


def told(*models: str, **troubles: str) -> dict[str, str]:
    states = [
        ModelState(name, "UNAVAILABLE" if name in troubles else "READY", troubles.get(name, ""))
        for name in models
    ]
    return readiness(states)


def test_an_ensemble_stands_for_its_parts() -> None:
    assert told(*LANGUAGE, *EMBEDDING, "magika") == {"toy": "", "mini_embedding": "", "magika": ""}


@pytest.mark.parametrize(
    ("part", "whole"),
    [
        ("toy_engine", "toy"),
        ("toy_tokenizer", "toy"),
        ("mini_embedder", "mini_embedding"),
        ("mini_embedding_tokenizer", "mini_embedding"),
    ],
)
@pytest.mark.parametrize("why", ["unloaded", "no such file"])
def test_a_part_that_has_gone_is_its_ensembles_trouble(part: str, whole: str, why: str) -> None:
    found = told(*LANGUAGE, *EMBEDDING, **{part: why})
    assert found.pop(whole) == f"{part}: {why}"
    assert set(found.values()) == {""}


def test_an_ensemble_that_has_gone_with_its_engine_is_missed() -> None:
    assert told(*LANGUAGE, toy="unloaded", toy_engine="unloaded") == {"toy": "toy_engine: unloaded"}
    broken = told(*LANGUAGE, toy="depends on toy_engine", toy_engine="no such file")
    assert broken == {"toy": "toy: depends on toy_engine; toy_engine: no such file"}


def test_a_model_that_failed_to_load_is_told_with_the_first_line_of_the_reason() -> None:
    assert told("magika", magika="no graph\nat line 3")["magika"] == "magika: no graph"


def test_what_was_taken_off_is_not_missed() -> None:
    assert told("magika", *LANGUAGE, magika="unloaded") == {"toy": ""}
    assert told(*LANGUAGE, **dict.fromkeys(LANGUAGE, "unloaded")) == {}


def test_what_was_never_loaded_is_not_missed() -> None:
    assert readiness([ModelState("toy", "READY", ""), ModelState("new", "", "")]) == {"toy": ""}


def test_a_model_is_ready_as_long_as_one_version_is() -> None:
    versions = [ModelState("toy", "UNAVAILABLE", "unloaded"), ModelState("toy", "READY", "")]
    for order in (versions, versions[::-1], [*versions, ModelState("toy", "LOADING", "")]):
        assert readiness(order) == {"toy": ""}
    assert readiness([ModelState("toy", "LOADING", "")]) == {"toy": "toy: loading"}


def test_a_name_that_only_ends_like_a_part_is_a_model_of_its_own() -> None:
    assert told("steam_engine", "toy") == {"steam_engine": "", "toy": ""}

"""Scores: exact answers only, counted by kind."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from training import exact_match
from training.baselines import Baselines
from training.chat import END, Conversation, Message, ask, render
from training.config import ModelConfig
from training.data.atlas import Atlas
from training.data.atlas_corpus import AtlasCorpus
from training.data.batches import PaddedBatches, encode
from training.data.case import Case
from training.data.corpus import Shape
from training.decoder import Decoder
from training.evaluate import EVALUATION, NUM_EXAMPLES, Report, evaluate, num_parts, write_evaluation
from training.exact_match import answer_all, score
from training.predictions import Quality
from training.presets import PRESETS
from training.recipes import recipe
from training.tokenizer import token_id, train_tokenizer
from training.trainer import Trainer


def nothing() -> None:
    """Nobody watches."""


CASES = [
    Case((Message("user", "a?"),), "yes", "letters"),
    Case((Message("user", "b?"),), "no", "letters"),
    Case((*ask("a?", "yes"), Message("user", "1?")), "maybe", "digits"),
]
TALK = tuple(Conversation((*case.messages, Message("assistant", case.answer))) for case in CASES)
TOKENIZER = train_tokenizer(["a? yes b? no 1? maybe"], vocab_size=270)


class Repeating:
    """The three conversations, again and again."""

    epoch_length = len(TALK)

    def conversation(self, index: int) -> Conversation:
        return TALK[index % len(TALK)]


@pytest.fixture(scope="module")
def trained() -> Decoder:
    """A tiny model that learned its three answers by heart."""
    model = ModelConfig(
        **{**PRESETS["retnet-moe-tiny"].model_dump(), "vocab_size": TOKENIZER.get_vocab_size()}
    )
    torch.manual_seed(0)
    known = recipe("retnet-moe-tiny").model_copy(update={"model": model, "batch_size": 3})
    decoder = Decoder(model)
    trainer = Trainer(known, decoder, PaddedBatches(Repeating(), TOKENIZER, batch_size=3, seed=0), [])
    for _ in range(known.steps):
        trainer.train_step()
    return decoder


def test_a_model_that_learned_its_cases_answers_them_all_exactly(trained: Decoder) -> None:
    assert answer_all(trained, TOKENIZER, CASES, advance=nothing) == ["yes", "no", "maybe"]
    result = score(trained, TOKENIZER, CASES, advance=nothing)
    assert (result.right, result.of, result.share) == (3, 3, 1.0)
    assert result.kinds == {"digits": (1, 1), "letters": (2, 2)}
    assert not result.mistakes


def test_a_longer_or_other_answer_is_wrong_and_reported(trained: Decoder) -> None:
    cases = [CASES[0], Case(CASES[1].messages, "no!", "letters"), Case(CASES[2].messages, "may", "digits")]
    result = score(trained, TOKENIZER, cases, advance=nothing)
    assert (result.right, result.of) == (1, 3)
    assert result.kinds == {"digits": (0, 1), "letters": (1, 2)}
    assert [(m.question, m.expected, m.given) for m in result.mistakes] == [
        ("b?", "no!", "no"),
        ("1?", "may", "maybe"),
    ]


def test_answers_keep_the_order_of_the_cases_whatever_the_batch(
    trained: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_match, "BATCH", 2)
    shuffled = [CASES[i] for i in (2, 0, 1, 2, 1)]
    assert answer_all(trained, TOKENIZER, shuffled, advance=nothing) == [case.answer for case in shuffled]


def test_the_report_has_three_scores_and_right_examples_of_several_kinds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    atlas, tiny = Atlas(num_countries=2), PRESETS["retnet-moe-tiny"]
    right = {case.messages: case.answer for case in atlas.held_out()}
    calls = list[None]()

    def answer(
        decoder: Decoder, tokenizer: Tokenizer, cases: Sequence[Case], *, advance: Callable[[], None]
    ) -> list[str]:
        for _ in range(0, len(cases), exact_match.BATCH):
            advance()
        return [right.get(case.messages, "wrong") for case in cases]

    monkeypatch.setattr(exact_match, "answer_all", answer)
    shape = Shape(batch_size=8, max_tokens=tiny.max_length, seed=0, validation_tokens=1000)
    data = AtlasCorpus(atlas).prepare(TOKENIZER, shape)
    decoder = Decoder(tiny.model_copy(update={"vocab_size": TOKENIZER.get_vocab_size()}))
    report = evaluate(decoder, TOKENIZER, data, advance=lambda: calls.append(None))
    assert {name: result.share for name, result in report.scores.items()} == {
        "held_out": 1.0,
        "unseen_templates": 0.0,
        "out_of_domain": 0.0,
    }
    assert len(calls) == num_parts(data)
    assert len(report.examples) == NUM_EXAMPLES
    known = {case.messages[-1].content: case.answer for case in atlas.held_out() if len(case.messages) == 1}
    assert all(known[example["question"]] == example["answer"] for example in report.examples)
    shortest = min((q for q in known if q.endswith("?")), key=len)
    assert shortest in {example["question"] for example in report.examples}
    assert report.as_json()["scores"]["held_out"]["of"] == len(atlas.held_out())


def test_the_end_token_is_part_of_no_answer(trained: Decoder) -> None:
    assert token_id(TOKENIZER, END) in encode([TALK[0]], TOKENIZER)[0][0]
    assert not any(END in answer for answer in answer_all(trained, TOKENIZER, CASES, advance=nothing))


def test_an_answer_is_cut_where_the_context_ends() -> None:
    """With learned positions one token more would be an error."""
    prompt = len(TOKENIZER.encode(render(CASES[0].messages, add_generation_prompt=True)).ids)
    changes = {"vocab_size": TOKENIZER.get_vocab_size(), "max_length": prompt + 2}
    decoder = Decoder(PRESETS["gpt2-tiny"].model_copy(update=changes))
    with torch.no_grad():
        decoder.embedding.weight[token_id(TOKENIZER, END)] = 0
        decoder.embedding.weight[token_id(TOKENIZER, "a")] = 1  # said on and on, never the end
        decoder.norm.bias += 1
    long = Case(CASES[0].messages, "yes no maybe " * 20, "letters")
    assert answer_all(decoder, TOKENIZER, [long], advance=nothing) == ["aa"]


def test_an_evaluation_that_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    quality = Quality(1, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
    report = Report("data", quality, Baselines(1.0, 1.0), {}, [], [], {})
    (tmp_path / EVALUATION).mkdir()
    with pytest.raises(OSError, match="directory"):
        write_evaluation(report, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [EVALUATION]
    (tmp_path / EVALUATION).rmdir()
    assert write_evaluation(report, tmp_path).read_text() == report.as_text()

"""How well a model answers: the share of test cases whose greedy answer is exactly the right one."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tokenizers import Tokenizer

from training.chat import END, render
from training.data.atlas import Atlas, Case
from training.decoder import Decoder
from training.generate import greedy
from training.tokenizer import chat_format, token_id

BATCH = 128
NUM_EXAMPLES = 5
MARGIN = 4  # tokens an answer may run over the longest right one before it is cut


@dataclass(frozen=True)
class Mistake:
    """A case that went wrong."""

    question: str
    expected: str
    given: str


@dataclass(frozen=True)
class Score:
    """Exact answers of one test set; `kinds` maps each kind of case to (right, of)."""

    right: int
    of: int
    kinds: dict[str, tuple[int, int]]
    mistakes: list[Mistake] = field(default_factory=list)

    @property
    def share(self) -> float:
        """Right answers as a share of all, 0 to 1."""
        return self.right / self.of


@dataclass(frozen=True)
class Report:
    """The scores of the three test sets by name, and held-out questions that the model answers rightly."""

    scores: dict[str, Score]
    examples: list[dict[str, str]]

    def as_json(self) -> dict[str, Any]:
        """The form of `evaluation.json`."""
        scores = {
            name: {"right": s.right, "of": s.of, "share": s.share, "kinds": s.kinds}
            for name, s in self.scores.items()
        }
        return {"scores": scores, "examples": self.examples}


def evaluate(decoder: Decoder, tokenizer: Tokenizer, data: Atlas, *, num_cases: int | None = None) -> Report:
    """Score the three test sets of `data`, each by itself, or the first `num_cases` of each."""
    sets = {
        "held_out": data.held_out(),
        "unseen_templates": data.unseen_templates(),
        "out_of_domain": data.out_of_domain(),
    }
    scores = {name: score(decoder, tokenizer, cases[:num_cases]) for name, cases in sets.items()}
    return Report(scores, _examples(sets["held_out"][:num_cases], scores["held_out"]))


def _examples(cases: Sequence[Case], result: Score) -> list[dict[str, str]]:
    """The shortest right single-turn question of each of NUM_EXAMPLES kinds."""
    wrong = {(mistake.question, mistake.expected) for mistake in result.mistakes}
    by_kind: dict[str, Case] = {}
    for case in sorted(cases, key=lambda case: len(case.messages[-1].content)):
        question = case.messages[-1].content
        if len(case.messages) == 1 and question.endswith("?") and (question, case.answer) not in wrong:
            by_kind.setdefault(case.kind, case)
    chosen = list(by_kind.values())[:NUM_EXAMPLES]
    return [{"question": case.messages[-1].content, "answer": case.answer} for case in chosen]


def score(decoder: Decoder, tokenizer: Tokenizer, cases: Sequence[Case]) -> Score:
    """Ask every case and compare the whole answer; a longer answer is wrong. `cases` must not be empty."""
    answers = answer_all(decoder, tokenizer, cases)
    asked = Counter(case.kind for case in cases)
    right = Counter(case.kind for case, given in zip(cases, answers, strict=True) if given == case.answer)
    mistakes = [
        Mistake(case.messages[-1].content, case.answer, given)
        for case, given in zip(cases, answers, strict=True)
        if given != case.answer
    ]
    kinds = {kind: (right[kind], of) for kind, of in sorted(asked.items())}
    return Score(right.total(), len(cases), kinds, mistakes)


def answer_all(decoder: Decoder, tokenizer: Tokenizer, cases: Sequence[Case]) -> list[str]:
    """The model's answer to each case, asked through the chat template."""
    chat = chat_format(tokenizer)
    prompts = [render(case.messages, add_generation_prompt=True, chat=chat) for case in cases]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    longest = max(len(e.ids) for e in tokenizer.encode_batch([case.answer for case in cases]))
    end = token_id(tokenizer, END)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [""] * len(ids)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        rows = greedy(decoder, [ids[i] for i in batch], max_tokens=longest + MARGIN, end=end)
        for i, text in zip(batch, tokenizer.decode_batch(rows, skip_special_tokens=False), strict=True):
            answers[i] = text
    return answers

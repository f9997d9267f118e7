"""The share of cases whose greedy answer is exactly the expected one, to the letter."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tokenizers import Tokenizer

from training.chat import render
from training.data.case import Case
from training.decoder import Decoder
from training.generate import greedy
from training.tokenizer import chat_format, token_id

BATCH = 128
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


def score(
    decoder: Decoder, tokenizer: Tokenizer, cases: Sequence[Case], *, advance: Callable[[], None]
) -> Score:
    """Ask every case and compare the whole answer; a longer answer is wrong. `cases` must not be empty.

    `advance` is called after every BATCH of them.
    """
    answers = answer_all(decoder, tokenizer, cases, advance=advance)
    asked = Counter(case.kind for case in cases)
    right = Counter(case.kind for case, given in zip(cases, answers, strict=True) if given == case.answer)
    mistakes = [
        Mistake(case.messages[-1].content, case.answer, given)
        for case, given in zip(cases, answers, strict=True)
        if given != case.answer
    ]
    kinds = {kind: (right[kind], of) for kind, of in sorted(asked.items())}
    return Score(right.total(), len(cases), kinds, mistakes)


def answer_all(
    decoder: Decoder, tokenizer: Tokenizer, cases: Sequence[Case], *, advance: Callable[[], None]
) -> list[str]:
    """The model's answer to each case, asked through the chat template; cut where the context ends."""
    chat = chat_format(tokenizer)
    prompts = [render(case.messages, add_generation_prompt=True, chat=chat) for case in cases]
    ids = [encoding.ids for encoding in tokenizer.encode_batch(prompts, add_special_tokens=False)]
    longest = max(len(e.ids) for e in tokenizer.encode_batch([case.answer for case in cases]))
    end = token_id(tokenizer, chat.end)
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    answers = [""] * len(ids)
    for start in range(0, len(order), BATCH):
        batch = order[start : start + BATCH]
        room = decoder.config.max_length - len(ids[batch[-1]])
        rows = greedy(decoder, [ids[i] for i in batch], max_tokens=min(longest + MARGIN, room), end=end)
        for i, text in zip(batch, tokenizer.decode_batch(rows, skip_special_tokens=False), strict=True):
            answers[i] = text
        advance()
    return answers

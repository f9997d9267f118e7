"""Conversations as a corpus: padded rows in which the assistant's words are learned."""

from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import takewhile
from random import Random

from tokenizers import Tokenizer

from training.chat import ChatFormat, Conversation, Message, render, segments
from training.data.batches import PaddedBatches, Row, cut_rows, encode
from training.data.case import Case
from training.data.choice import DataError
from training.data.corpus import PreparedData, Shape, join_until, pad_all, take_tokens
from training.tokenizer import chat_format

NUM_CASES = 200  # of the test set, unless a recipe says otherwise

Sized = tuple[Message, int]  # a message and its tokens


class Deck:
    """Conversations without end, in an order of each epoch's own."""

    def __init__(self, conversations: Sequence[Conversation], *, seed: int) -> None:
        self._conversations = conversations
        self._seed = seed
        self._order = lru_cache(maxsize=2)(self._shuffled)

    @property
    def epoch_length(self) -> int:
        """How many conversations there are."""
        return len(self._conversations)

    def conversation(self, index: int) -> Conversation:
        """Conversation number `index`, from 0 without end."""
        epoch, place = divmod(index, self.epoch_length)
        return self._conversations[self._order(epoch)[place]]

    def _shuffled(self, epoch: int) -> list[int]:
        order = list(range(self.epoch_length))
        Random(f"{self._seed}/deck/{epoch}").shuffle(order)
        return order


class ChatCorpus:
    """Conversations to train on and conversations held out."""

    def __init__(self, kept: Sequence[Conversation], held_out: Sequence[Conversation]) -> None:
        self._kept = kept
        self._held_out = held_out

    def texts(self, chat: ChatFormat) -> Iterable[str]:
        """The training conversations' text."""
        return (text for conversation in self._kept for text, _ in segments(conversation, chat))

    def prepare(self, tokenizer: Tokenizer, shape: Shape) -> PreparedData:
        """Batches of like length. A conversation that is too long becomes several, see `fit`.

        The one test set asks for the last answer of the held-out conversations. Raises DataError if nothing
        can be learned within `max_tokens`.
        """
        kept = fit(self._kept, tokenizer, shape.max_tokens)
        held_out = fit(self._held_out, tokenizer, shape.max_tokens)
        if not kept or not held_out:
            raise DataError(
                f"no conversation has an answer within {shape.max_tokens} tokens: train with a larger "
                "sequence_length"
            )
        chat, rows = chat_format(tokenizer), encode(held_out, tokenizer)
        texts = (render(talk.messages, add_generation_prompt=False, chat=chat) for talk in held_out)
        validation = take_tokens(cut_rows(rows, shape.max_tokens), shape.validation_tokens)
        return PreparedData(
            batches=PaddedBatches(
                Deck(kept, seed=shape.seed),
                tokenizer,
                batch_size=shape.batch_size,
                seed=shape.seed,
                max_tokens=shape.max_tokens,
            ),
            validation=pad_all(validation, tokenizer, batch_size=shape.batch_size),
            held_out=join_until(texts, tokenizer),
            summary=f"{len(self._kept):,} conversations to train on, {len(self._held_out):,} held out; "
            f"cut to {shape.max_tokens} tokens they are {len(kept):,} and {len(held_out):,}",
            test_sets={"held_out": _cases(held_out, rows, shape)},
        )


def fit(conversations: Sequence[Conversation], tokenizer: Tokenizer, max_tokens: int) -> list[Conversation]:
    """The conversations, those of more than `max_tokens` inputs cut where the user speaks again.

    A system message is said again in each part. A single exchange that is too long stays so, its answer will
    be cut off; one whose question alone takes all the room is left out.
    """
    messages = [message for talk in conversations for message in talk.messages]
    lengths = iter(len(ids) for ids, _ in encode([Conversation((m,)) for m in messages], tokenizer))
    sized = ([(message, next(lengths)) for message in talk.messages] for talk in conversations)
    return [part for talk in sized for part in _parts(talk, max_tokens)]


def _parts(talk: list[Sized], max_tokens: int) -> Iterator[Conversation]:
    system = [sized for sized in talk if sized[0].role == "system"]
    part = list(system)
    for exchange in _exchanges(talk[len(system) :]):
        if len(part) > len(system) and _size(part) + _size(exchange) > max_tokens:
            yield Conversation(tuple(message for message, _ in part))
            part = list(system)
        if part != system or _before_answer([*system, *exchange]) < max_tokens:
            part += exchange
    if any(message.role == "assistant" for message, _ in part):
        yield Conversation(tuple(message for message, _ in part))


def _exchanges(talk: list[Sized]) -> Iterator[list[Sized]]:
    """What the user says with the answers to it, one after the other."""
    exchange = list[Sized]()
    for before, sized in zip([None, *talk], talk, strict=False):
        if before is not None and before[0].role == "assistant" and sized[0].role == "user":
            yield exchange
            exchange = []
        exchange.append(sized)
    yield exchange


def _size(part: Sequence[Sized]) -> int:
    return sum(size for _, size in part)


def _before_answer(part: Sequence[Sized]) -> int:
    """Tokens until the assistant speaks."""
    return _size(list(takewhile(lambda sized: sized[0].role != "assistant", part)))


def _cases(talks: Sequence[Conversation], rows: Sequence[Row], shape: Shape) -> list[Case]:
    """The last answers of conversations that fit as a whole, and have a question."""
    cases = []
    for talk, (ids, _) in zip(talks, rows, strict=True):
        roles = [message.role for message in talk.messages]
        last = len(roles) - 1 - roles[::-1].index("assistant")
        if last > 0 and len(ids) <= shape.max_tokens:
            cases.append(Case(talk.messages[:last], talk.messages[last].content, "last answer"))
    return cases[: shape.num_cases or NUM_CASES]

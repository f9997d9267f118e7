"""A question whose answer is checked to the letter."""

from dataclasses import dataclass

from training.chat import Conversation, Message


@dataclass(frozen=True)
class Case:
    """A test: what was said so far, ending in a question, and the one right answer."""

    messages: tuple[Message, ...]
    answer: str
    kind: str

    @property
    def conversation(self) -> Conversation:
        """The case with its answer said."""
        return Conversation((*self.messages, Message("assistant", self.answer)))

"""Real dialogues: 4,017 conversations between two people, from the package chitchat-dataset (BYU, MIT)."""

import json
from importlib.util import find_spec
from itertools import takewhile
from pathlib import Path
from typing import Any

from training.chat import Conversation, Message, Role
from training.data.choice import DataError

SPEAKERS: tuple[Role, Role] = ("user", "assistant")


def read_chitchat() -> list[Conversation]:
    """The conversations in which both people speak; who began is the user. Raises DataError."""
    # find_spec, not import: the package would read its data once more.
    spec = find_spec("chitchat_dataset")
    if spec is None or spec.origin is None:
        raise DataError(
            "the dialogues come in the package chitchat-dataset, which is not installed: run `make setup`"
        )
    stored = json.loads((Path(spec.origin).parent / "dataset.json").read_bytes())
    conversations = [_conversation(entry["messages"]) for entry in stored.values()]
    return [talk for talk in conversations if len(talk.messages) > 1]


def _conversation(turns: list[list[dict[str, Any]]]) -> Conversation:
    """Turns alternate, up to an empty one; what someone sent in several messages is one turn, a line each."""
    said = ("\n".join(part["text"].strip() for part in turn).strip() for turn in turns)
    return Conversation(tuple(Message(SPEAKERS[i % 2], text) for i, text in enumerate(takewhile(bool, said))))

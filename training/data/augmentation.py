"""What people do to a question when they type it: small words around it, case, slips of the finger."""

from collections.abc import Sequence
from random import Random

HEAD, TAIL = 0.15, 0.12
DISTRACTED, MOST_DISTRACTIONS = 0.15, 2
LOWER, UPPER, BARE, TYPO = 0.2, 0.03, 0.2, 0.12
SHORTEST_MISTYPED = 5

HEADS = (
    *("Hey,", "Hello,", "Hi,", "Sorry,", "Well,", "OK,", "So,", "Excuse me,", "Dear Atlas,", "Listen,"),
    *("One more thing:", "I have a question:", "My son asks:", "For school:", "Here is an easy one:"),
    *("Just out of interest,", "You know so much.", "Good morning.", "Let me think.", "Quick question:"),
    *("It is late, but", "My boss wonders:", "We have a bet:", "I am curious:", "Maybe you can help:"),
)
TAILS = (
    *("Thanks!", "Thank you.", "Please.", "I need it for school.", "I am just curious.", "It is for a quiz."),
    *(
        "I have no idea.",
        "My friend wants to know.",
        "Be quick.",
        "Just say it.",
        "Answer me.",
        "I keep forgetting.",
    ),
)


def distract(phrasing: str, words: Sequence[str], rng: Random) -> str:
    """`phrasing` with some of `words` strewn in at times: unknown words are to be passed over."""
    parts = phrasing.split(" ")
    if rng.random() < DISTRACTED:
        for _ in range(rng.randint(1, MOST_DISTRACTIONS)):
            parts.insert(rng.randrange(len(parts) + 1), rng.choice(words))
    return " ".join(parts)


def mistreat(text: str, rng: Random) -> str:
    """`text` as a hurried person might type it; often as it is."""
    if rng.random() < HEAD:
        text = f"{rng.choice(HEADS)} {text[:1].lower()}{text[1:]}"
    if rng.random() < TYPO:
        text = _with_typo(text, rng)
    if rng.random() < TAIL:
        text = f"{text} {rng.choice(TAILS)}"
    elif rng.random() < BARE:
        text = text.rstrip("?.!")
    draw = rng.random()
    return text.lower() if draw < LOWER else text.upper() if draw < LOWER + UPPER else text


def _with_typo(text: str, rng: Random) -> str:
    """One slip inside one longer word: a letter lost, doubled, or swapped with the next.

    Never a replaced letter, which could make another country: Gambia, Zambia.
    """
    words = text.split(" ")
    places = [i for i, word in enumerate(words) if len(word) >= SHORTEST_MISTYPED]
    if not places:
        return text
    place = rng.choice(places)
    word = words[place]
    at = rng.randrange(1, len(word) - 2)
    slips = (word[at + 1 :], word[at] + word[at:], word[at + 1] + word[at] + word[at + 2 :])
    words[place] = word[:at] + rng.choice(slips)
    return " ".join(words)

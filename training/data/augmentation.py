"""What people do to a question when they type it: case, missing punctuation, slips of the finger."""

from random import Random

LOWER, UPPER, BARE, TYPO = 0.2, 0.03, 0.2, 0.12
SHORTEST_MISTYPED = 5


def mistreat(text: str, rng: Random) -> str:
    """`text` as a hurried person might type it; most often as it is."""
    if rng.random() < TYPO:
        text = _with_typo(text, rng)
    if rng.random() < BARE:
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

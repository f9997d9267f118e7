"""Greedy decoding by the step path equals greedy decoding by full forward passes."""

import pytest
import torch

from training.decoder import Decoder
from training.generate import greedy
from training.presets import preset

PROMPTS = [[5, 9, 200], [7], [1, 2, 3, 4, 5, 6, 7, 8, 9]]


def by_full_forward(decoder: Decoder, prompt: list[int], *, max_tokens: int, end: int) -> list[int]:
    """The definition: the whole text again for every token."""
    text = list(prompt)
    for _ in range(max_tokens):
        logits, _ = decoder(torch.tensor([text]))
        token = int(logits[0, -1].argmax())
        if token == end:
            break
        text.append(token)
    return text[len(prompt) :]


@pytest.mark.parametrize("name", ["retnet-moe-tiny", "llama-tiny", "gpt2-tiny"])
@torch.no_grad()
def test_ragged_prompts_continue_as_each_would_alone(name: str) -> None:
    decoder = Decoder(preset(name))
    # Larger weights than a fresh model's, or every row would repeat one token.
    for parameter in decoder.parameters():
        parameter.mul_(3 if parameter.ndim > 1 else 1)
    rows = greedy(decoder, PROMPTS, max_tokens=12, end=255)
    assert rows == [by_full_forward(decoder, prompt, max_tokens=12, end=255) for prompt in PROMPTS]
    assert len({token for row in rows for token in row}) > 5
    end = rows[0][4]
    cut = greedy(decoder, PROMPTS, max_tokens=12, end=end)
    assert cut == [by_full_forward(decoder, prompt, max_tokens=12, end=end) for prompt in PROMPTS]
    assert len(cut[0]) <= 4

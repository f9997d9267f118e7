"""Greedy decoding of many prompts at once, through the same step path that is served."""

from collections.abc import Sequence

import torch
from torch import Tensor

from training.blocks.state import State
from training.decoder import Decoder


@torch.inference_mode()
def greedy(
    decoder: Decoder, prompts: Sequence[Sequence[int]], *, max_tokens: int, end: int
) -> list[list[int]]:
    """The most likely continuation of each prompt, token by token, up to but without `end`.

    Prompts may differ in length; none may be empty. A row that has ended is carried along until all have.
    """
    device = decoder.embedding.weight.device
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=device)  # (B,)
    B, T = len(prompts), int(lengths.max())
    rows = [[*prompt, *[end] * (T - len(prompt))] for prompt in prompts]
    input_ids = torch.tensor(rows, device=device)
    logits, state = decoder(input_ids, lengths=lengths, state=decoder.init_state(B))
    chosen = [logits.argmax(dim=-1)]
    ended = chosen[0] == end
    while len(chosen) < max_tokens and not bool(ended.all()):
        logits, state = _step(decoder, chosen[-1], lengths + len(chosen) - 1, state)
        chosen.append(logits.argmax(dim=-1))
        ended |= chosen[-1] == end
    said: list[list[int]] = torch.stack(chosen, dim=1).tolist()
    return [row[: row.index(end)] if end in row else row for row in said]


def _step(decoder: Decoder, tokens: Tensor, positions: Tensor, state: State) -> tuple[Tensor, State]:
    output: tuple[Tensor, State] = decoder(tokens[:, None], positions=positions[:, None], state=state)
    return output

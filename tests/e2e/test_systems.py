"""Each system through the real Triton: a chat answer is token for token what PyTorch computes."""

import json
from collections.abc import Iterator

import pytest
import torch
from tokenizers import Tokenizer

from tests.backends.prompt_model import chat_tokenizer
from tests.e2e.conftest import RunningTriton, running_triton
from tests.e2e.tiny_models import install_tiny, random_decoder
from tests.e2e.triton_calls import generate

pytestmark = [pytest.mark.triton, pytest.mark.slow]

# The attention and the retention + MoE model are served in all other tests.
SYSTEMS = ("arslm-tiny", "bayesian-tiny", "gpt2-tiny", "mini-claude-tiny", "tars-tiny")
QUESTION = "the cat sat on the 🙂"
PROMPT = (
    "<|im_start|>system\nYou help.<|im_end|>\n"
    f"<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
NEW_TOKENS = 24
END = 2  # barred by min_tokens


@pytest.fixture(scope="module")
def systems(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningTriton]:
    scratch = tmp_path_factory.mktemp("systems")
    for name in SYSTEMS:
        install_tiny(name, scratch / "repository", tmp_path_factory)
    with running_triton(scratch / "repository") as triton:
        yield triton


def greedy_ids(tokenizer: Tokenizer, model: str) -> list[int]:
    """Without a state: every token from a pass over the whole text before it."""
    decoder, prompt = random_decoder(model), tokenizer.encode(PROMPT, add_special_tokens=False).ids
    ids = list(prompt)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logits = decoder(torch.tensor([ids]))[0][0, -1]
            logits[END] = -torch.inf
            ids.append(int(logits.argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("model", SYSTEMS)
async def test_a_chat_answer_is_what_pytorch_computes(systems: RunningTriton, model: str) -> None:
    messages = json.dumps([{"role": "user", "content": QUESTION}])
    answer = await generate(
        systems.grpc, model, messages=messages, max_tokens=NEW_TOKENS, min_tokens=NEW_TOKENS
    )
    assert answer.error == ""
    assert answer.ids == greedy_ids(chat_tokenizer(), model)

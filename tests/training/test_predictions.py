"""Figures of next-token predictions, against sums written out token by token."""

import math

import pytest
import torch

from training.blocks.router import expert_load
from training.chat import CHAT_FORMATS, END, Conversation, ask
from training.data.batches import IGNORED, Batch, encode, pad_rows
from training.decoder import Decoder
from training.predictions import (
    Predictions,
    bytes_per_token,
    describe_doubt,
    describe_layers,
    predict,
    summarize,
)
from training.presets import PRESETS
from training.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["eins zwei drei vier fünf sechs größer 東京 🙂"] * 3, vocab_size=300)
TALKS = [
    *(Conversation(ask(f"zähle bis {n}", "eins zwei drei vier fünf"[: 4 * n])) for n in range(1, 5)),
    Conversation((*ask("wer?", "größer 東京"), *ask("und?", "🙂 sechs"))),
]


def nothing() -> None:
    """Nobody watches."""


def build(name: str) -> Decoder:
    model = PRESETS[name].model_copy(update={"vocab_size": TOKENIZER.get_vocab_size()})
    decoder = Decoder(model)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.mul_(2)  # away from uniform
    return decoder


def batches() -> list[Batch]:
    rows = encode(TALKS, TOKENIZER)
    return [pad_rows(rows[:2], TOKENIZER), pad_rows(rows[2:], TOKENIZER)]


def test_a_token_stands_for_the_bytes_of_its_text() -> None:
    sizes = bytes_per_token(TOKENIZER)
    for text in ("eins zwei", "größer 東京 🙂", "\n\t"):
        ids = TOKENIZER.encode(text, add_special_tokens=False).ids
        assert int(sizes[ids].sum()) == len(text.encode())
    for token in CHAT_FORMATS["roles"].special_tokens:
        assert sizes[TOKENIZER.token_to_id(token)] == 0


@pytest.mark.parametrize("name", ["llama-tiny", "retnet-moe-tiny"])
def test_the_figures_are_those_summed_token_by_token(name: str) -> None:
    """Each conversation alone, without padding, and only what the assistant says."""
    decoder, end = build(name), TOKENIZER.token_to_id(END)
    total, of_text, right, squares, num_bytes, count = 0.0, 0.0, 0, 0.0, 0, 0
    for talk in TALKS:
        (row,) = encode([talk], TOKENIZER)
        with torch.no_grad():
            probabilities = decoder(torch.tensor([row[0][:-1]]))[0][0].double().softmax(-1)
        for p, token, is_learned in zip(probabilities, row[0][1:], row[1][1:], strict=True):
            if is_learned:
                total -= math.log(p[token])
                of_text -= math.log(p[token]) if token != end else 0
                right += int(p.argmax() == token)
                squares += float(((p - torch.eye(len(p))[token]) ** 2).sum())
                count += 1
        answers = [message.content for message in talk.messages if message.role == "assistant"]
        num_bytes += len("".join(answers).encode())
    quality = summarize(predict(decoder, batches(), nothing), TOKENIZER)
    assert quality.tokens == count
    # float32 logits
    assert quality.loss == pytest.approx(total / count, rel=1e-5)
    assert quality.perplexity == pytest.approx(math.exp(total / count), rel=1e-4)
    assert quality.bits_per_byte == pytest.approx(of_text / math.log(2) / num_bytes, rel=1e-5)
    assert quality.top1 == pytest.approx(right / count)
    assert quality.brier == pytest.approx(squares / count, rel=1e-4)


def test_the_load_is_that_of_all_valid_tokens_together() -> None:
    decoder, routing = build("retnet-moe-tiny"), list[torch.Tensor]()
    parts: list[list[torch.Tensor]] = [[] for _ in range(2)]
    for talk in TALKS:
        routing.clear()
        (row,) = encode([talk], TOKENIZER)
        with torch.no_grad():
            decoder(torch.tensor([row[0][:-1]]), routing=routing)
        for layer, logits in enumerate(routing):
            parts[layer].append(logits[0])
    chosen = decoder.config.experts_per_token
    expected = torch.stack([expert_load(torch.cat(layer), chosen) for layer in parts])
    load = predict(decoder, batches(), nothing).load
    assert torch.allclose(load, expected, atol=1e-6)
    layers = describe_layers(load)
    assert [layer.shares for layer in layers] == load.tolist()
    assert layers[0].figures.max_violation == pytest.approx(
        max(layers[0].shares) * decoder.config.num_experts - 1, abs=1e-5
    )


def test_a_model_without_experts_or_beliefs_has_no_figures_on_them() -> None:
    predictions = predict(build("llama-tiny"), batches(), nothing)
    assert describe_layers(predictions.load) == []
    assert describe_doubt(predictions) == {}


def test_doubts_are_ranked_beside_losses_and_errors() -> None:
    """Four tokens; the epistemic doubt goes with the loss, the aleatoric against it and outweighs it."""
    nll, is_right = torch.tensor([0.1, 0.2, 2.0, 3.0]), torch.tensor([True, True, False, False])
    epistemic, aleatoric = torch.tensor([0.01, 0.02, 0.03, 0.04]), torch.tensor([0.4, 0.3, 0.2, 0.1])
    extras = {
        "epistemic": epistemic,
        "aleatoric": aleatoric,
        "confidence": torch.tensor([0.9, 0.9, 0.5, 0.9]),
    }
    none = torch.zeros(4)
    predictions = Predictions(none, nll, none, is_right, none, extras, torch.zeros(0))
    doubts = describe_doubt(predictions)
    assert {name: doubt.with_loss for name, doubt in doubts.items()} == pytest.approx(
        {"epistemic": 1, "aleatoric": -1, "total": -1, "doubt": 0.25819889}  # ranks 2 2 4 2 beside 1 2 3 4
    )
    assert doubts["epistemic"].with_error == pytest.approx(2 / 5**0.5)  # ranks 1 2 3 4 beside 1.5 1.5 3.5 3.5
    assert doubts["total"].with_error == pytest.approx(-2 / 5**0.5)


def test_a_bayesian_models_figures_are_taken_at_the_learned_tokens() -> None:
    decoder = build("bayesian-tiny")
    predictions, expected = predict(decoder, batches(), nothing), dict[str, list[torch.Tensor]]()
    for batch in batches():
        extras: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            decoder(batch.input_ids, extras=extras)
        for name, figure in extras.items():
            expected.setdefault(name, []).append(figure[batch.targets != IGNORED])
    assert set(predictions.extras) == set(expected) == set(decoder.extra_names())
    for name, parts in expected.items():
        assert torch.allclose(predictions.extras[name], torch.cat(parts), atol=1e-5), name
    assert set(describe_doubt(predictions)) == {"epistemic", "aleatoric", "total", "doubt"}


def test_every_batch_is_reported() -> None:
    calls = list[None]()
    predict(build("llama-tiny"), batches(), lambda: calls.append(None))
    assert len(calls) == 2

"""The training step: schedule, loss, optimizer, and a state that is all there is."""

import math
import re

import pytest
import torch
import torch.nn.functional as F

from training.bayesian_loss import belief_loss
from training.chat import Conversation, ask
from training.data.batches import BATCHES_PER_GROUP, IGNORED, PaddedBatches, encode, pad_rows
from training.decoder import Decoder
from training.optimizer import learning_rate
from training.recipes import RECIPES, Recipe, recipe
from training.tokenizer import train_tokenizer
from training.trainer import Trainer, reproducible

TOKENIZER = train_tokenizer(["one two three four five six seven eight"], vocab_size=280)


class Counting:
    """Conversation n asks for n."""

    def conversation(self, index: int) -> Conversation:
        return Conversation(ask(f"number {index}", " ".join(["one", "two", "three"][: index % 3 + 1])))


def batches(batch_size: int = 4, seed: int = 0) -> PaddedBatches:
    return PaddedBatches(Counting(), TOKENIZER, batch_size=batch_size, seed=seed)


def small(name: str = "retnet-moe-tiny", **changes: object) -> Recipe:
    known = recipe(name).model_dump()
    known["model"]["vocab_size"] = TOKENIZER.get_vocab_size()
    return Recipe.model_validate({**known, "steps": 30, "warmup_steps": 5, **changes})


def build(known: Recipe) -> Trainer:
    torch.manual_seed(known.seed)
    return Trainer(known, Decoder(known.model), batches(), [batches(seed=1)[0], batches(seed=1)[1]])


def test_the_rate_rises_linearly_and_falls_to_zero_along_a_half_cosine() -> None:
    known = small(learning_rate=0.1, warmup_steps=4, steps=14)
    rates = [learning_rate(known, step) for step in range(15)]
    assert rates[:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates[4] == pytest.approx(0.1)
    assert rates[9] == pytest.approx(0.05)  # half way down
    assert rates[14] == pytest.approx(0.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)


def test_a_batch_is_a_function_of_its_step() -> None:
    one, other = batches(), batches()
    late = one[BATCHES_PER_GROUP + 3]
    assert torch.equal(late.input_ids, other[BATCHES_PER_GROUP + 3].input_ids)
    assert torch.equal(late.targets, other[BATCHES_PER_GROUP + 3].targets)
    assert not torch.equal(late.input_ids, other[3].input_ids)


def test_a_group_of_batches_holds_each_of_its_conversations_once() -> None:
    seen = []
    for step in range(BATCHES_PER_GROUP):
        batch = batches()[step]
        seen += [
            TOKENIZER.decode(row[ok].tolist()) for row, ok in zip(batch.input_ids, batch.valid, strict=True)
        ]
    numbers = sorted(int(re.findall(r"number (\d+)", text)[0]) for text in seen)
    assert numbers == list(range(4 * BATCHES_PER_GROUP))


def test_the_loss_is_the_mean_cross_entropy_of_the_learned_tokens() -> None:
    trainer = build(small("llama-tiny"))
    batch = batches()[0]
    with torch.no_grad():
        logits, _ = trainer.decoder(batch.input_ids)
    logs = logits.log_softmax(-1)
    expected = [
        -logs[b, t, target].item()
        for b, row in enumerate(batch.targets.tolist())
        for t, target in enumerate(row)
        if target != IGNORED
    ]
    report = trainer.train_step()
    assert report.loss == pytest.approx(sum(expected) / len(expected), rel=1e-5)  # float32 sums
    assert report.routing_loss == 0
    assert report.expert_load == []


def test_validation_weighs_batches_by_their_learned_tokens() -> None:
    trainer = build(small())
    pairs = [ask("a", "one"), ask("b", "one two three four five six seven eight")]
    rows = [encode([Conversation(pair)], TOKENIZER)[0] for pair in pairs]
    trainer._validation = [pad_rows([row], TOKENIZER) for row in rows]
    apart = trainer.validate()
    total = count = 0.0
    with torch.no_grad():
        for batch in trainer._validation:
            logits, _ = trainer.decoder(batch.input_ids)
            total += F.cross_entropy(logits[0], batch.targets[0], reduction="sum").item()
            count += batch.num_learned
    assert apart == pytest.approx(total / count, rel=1e-5)  # float32 sums


@pytest.mark.parametrize("name", ["retnet-moe-tiny", "llama-tiny", "gpt2-tiny"])
def test_every_parameter_learns_and_the_loss_falls(name: str) -> None:
    trainer = build(small(name))
    before = {key: value.clone() for key, value in trainer.decoder.named_parameters()}
    losses = [trainer.train_step().loss for _ in range(30)]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for key, value in trainer.decoder.named_parameters():
        assert not torch.equal(value, before[key]), key


def test_the_report_tells_load_per_expert_and_tokens() -> None:
    trainer = build(small())
    report = trainer.train_step()
    assert report.step == trainer.step == 1
    assert report.num_tokens == int(batches()[0].valid.sum())
    assert [sum(layer) for layer in report.expert_load] == pytest.approx([1.0, 1.0])
    assert report.routing_loss > 0
    assert report.learning_rate == pytest.approx(learning_rate(trainer.recipe, 0))


def test_the_routers_losses_are_learned_too() -> None:
    known = small()
    model = {"balance_coefficient": 0.0, "z_coefficient": 0.0}
    without = build(small(model={**known.model.model_dump(), **model}))
    with_losses = build(known)
    assert without.train_step().routing_loss == 0
    with_losses.train_step()
    router = "exp_avg/layers.0.ffn.router.weight"
    assert not torch.allclose(with_losses.tensors()[router], without.tensors()[router], rtol=1e-3)


def test_only_matrices_decay() -> None:
    trainer = build(small(weight_decay=0.3))
    decayed, kept = trainer._optimizer.param_groups
    assert (decayed["weight_decay"], kept["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in kept["params"]} == {1}
    num_given = len(decayed["params"]) + len(kept["params"])
    assert num_given == len(list(trainer.decoder.parameters()))


def test_the_gradient_is_clipped() -> None:
    gentle, free = build(small(clip_norm=1e-6)), build(small(clip_norm=1e6))
    assert gentle.train_step().gradient_norm == free.train_step().gradient_norm
    exp_avg = [t.norm() for name, t in gentle.tensors().items() if name.startswith("exp_avg/")]
    assert math.hypot(*map(float, exp_avg)) == pytest.approx(1e-7, rel=1e-3)  # (1 - β1) · clip_norm


def test_a_restored_trainer_goes_on_bit_identically() -> None:
    known = small()
    with reproducible(threads=1):
        straight = build(known)
        losses = [straight.train_step().loss for _ in range(12)]
        first = build(known)
        for _ in range(5):
            first.train_step()
        saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
        torch.manual_seed(99)
        second = build(known.model_copy(update={"seed": 7}))
        second.restore(5, saved)
        assert torch.equal(torch.get_rng_state(), saved["random"])
        resumed = [second.train_step().loss for _ in range(7)]
    assert resumed == losses[5:]
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name


def test_a_missing_tensor_is_named() -> None:
    trainer = build(small())
    with pytest.raises(KeyError, match=r"weight/embedding\.weight"):
        trainer.restore(0, {})


def test_a_gradient_that_is_no_number_stops_the_run_with_advice() -> None:
    trainer = build(small())
    with torch.no_grad():
        trainer.decoder.embedding.weight[0, 0] = float("nan")
    with pytest.raises(FloatingPointError, match="lower learning_rate"):
        trainer.train_step()


def settings() -> tuple[int, bool, bool]:
    fills = bool(torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]
    return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled(), fills


def test_reproducible_puts_the_settings_back() -> None:
    before = settings()
    with reproducible(threads=before[0] + 1):
        assert settings() == (before[0] + 1, True, False)
    assert settings() == before


def test_an_unknown_recipe_lists_the_known_ones() -> None:
    with pytest.raises(KeyError, match="unknown recipe 'atlus'; known: arslm-tiny, atlas, bayesian-tiny"):
        recipe("atlus")
    assert recipe("atlas") is RECIPES["atlas"]


def test_a_bayesian_models_belief_is_learned_too() -> None:
    """The first moments point along the gradient of both losses, not along that of cross entropy alone."""
    trainer, other = build(small("bayesian-tiny")), build(small("bayesian-tiny"))
    batch, extras = batches()[0], dict[str, torch.Tensor]()
    logits, _ = other.decoder(batch.input_ids, extras=extras)
    flat, targets = logits.flatten(0, 1), batch.targets.flatten()
    confidence = extras["confidence"].flatten()
    belief = belief_loss(flat, targets, confidence, num_statistics=16, coefficient=0.1)
    plain = F.cross_entropy(flat, targets)
    name = "layers.1.mixer.statistics.counts.weight"
    weight = other.decoder.get_parameter(name)
    whole, alone = (
        torch.autograd.grad(loss, weight, retain_graph=True)[0] for loss in (plain + belief, plain)
    )
    report = trainer.train_step()
    assert report.belief_loss == pytest.approx(belief.item(), abs=1e-5)
    assert report.loss == pytest.approx(plain.item(), abs=1e-5)
    moved = trainer.tensors()[f"exp_avg/{name}"]
    assert F.cosine_similarity(moved.flatten(), whole.flatten(), dim=0) > 0.9999
    assert F.cosine_similarity(moved.flatten(), alone.flatten(), dim=0) < 0.99


def test_a_model_without_beliefs_has_no_loss_for_them() -> None:
    assert build(small("llama-tiny")).train_step().belief_loss == 0

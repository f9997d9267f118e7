"""The decoder as a whole: causality, state, padding, initialisation, and a golden run."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from training.blocks.router import summarize_routing
from training.blocks.state import StateSpec
from training.config import ModelConfig
from training.decoder import Decoder
from training.presets import PRESETS

NAMES = ("llama-tiny", "gpt2-tiny", "retnet-moe-tiny", "arslm-tiny", "bayesian-tiny")
HYBRID = ModelConfig(
    **PRESETS["retnet-moe-tiny"].model_dump()
    | {"mixer": ("attention", "retention"), "ffn": ("moe", "swiglu"), "position": "rope", "num_kv_heads": 1}
)
POST_NORM = ModelConfig(**PRESETS["gpt2-tiny"].model_dump() | {"norm_placement": "post", "tied_head": False})
BIAS_BALANCED = ModelConfig(
    **PRESETS["retnet-moe-tiny"].model_dump() | {"balancing": "bias", "num_shared_experts": 1}
)
AS_PUBLISHED = ModelConfig(
    **PRESETS["retnet-moe-tiny"].model_dump()
    | {"decays": "spread", "retention_scaling": True, "embedding_scale": 8.0, "embedding_norm": True}
)
CONFIGS = {name: PRESETS[name] for name in NAMES} | {
    "hybrid": HYBRID,
    "post-norm": POST_NORM,
    "bias-balanced": BIAS_BALANCED,
    "retnet-as-published": AS_PUBLISHED,
}
GOLDEN = Path(__file__).with_name("golden_losses.json")


@pytest.fixture(params=CONFIGS)
def decoder(request: pytest.FixtureRequest) -> Decoder:
    return Decoder(CONFIGS[request.param]).requires_grad_(False)


def random_ids(decoder: Decoder, B: int, T: int) -> Tensor:
    return torch.randint(0, decoder.config.vocab_size, (B, T))


def step_through(decoder: Decoder, ids: Tensor, cuts: list[int]) -> tuple[Tensor, list[Tensor]]:
    """Logits at the end of each piece between the cuts, (B, pieces, V), and the last state."""
    state, outputs = decoder.init_state(ids.shape[0]), []
    state = tuple(tensor.to(decoder.embedding.weight.dtype) for tensor in state)
    for start, end in zip([0, *cuts], [*cuts, ids.shape[1]], strict=True):
        positions = torch.arange(start, end).expand(ids.shape[0], -1)
        logits, state = decoder(ids[:, start:end], positions=positions, state=state)
        outputs.append(logits)
    return torch.stack(outputs, dim=1), list(state)


def test_a_changed_token_leaves_all_logits_before_it_bit_identical(decoder: Decoder) -> None:
    ids = random_ids(decoder, 1, 40)
    before, _ = decoder(ids)
    changed = ids.clone()
    changed[0, 25] = (ids[0, 25] + 1) % decoder.config.vocab_size
    after, _ = decoder(changed)
    assert torch.equal(after[:, :25], before[:, :25])
    assert not torch.equal(after[:, 25:], before[:, 25:])


@pytest.mark.parametrize("T", [1, 7, 63])
def test_steps_with_a_state_equal_the_full_sequence_with_gradients(T: int, decoder: Decoder) -> None:
    decoder.double().requires_grad_(True)
    ids = random_ids(decoder, 2, T)
    cuts = [T // 2, *range(T // 2 + 1, T)] if T > 1 else []
    stepped, _ = step_through(decoder, ids, cuts)
    full = decoder(ids)[0][:, [end - 1 for end in (*cuts, T)]]
    torch.testing.assert_close(stepped, full, rtol=0, atol=1e-11)  # float64, sums in another order
    weights, parameters = torch.randn_like(full), list(decoder.parameters())
    for ours, theirs in zip(
        torch.autograd.grad(stepped, parameters, weights),
        torch.autograd.grad(full, parameters, weights),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_chunked_prefill_leaves_the_state_of_a_single_one(decoder: Decoder) -> None:
    ids = random_ids(decoder, 2, 50)
    for ours, theirs in zip(
        step_through(decoder, ids, [16, 32, 48])[1], step_through(decoder, ids, [])[1], strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


def test_a_padded_batch_equals_its_rows_alone(decoder: Decoder) -> None:
    """Padding is rubbish on purpose, and reaches past the last position."""
    S = decoder.config.max_length
    lengths, starts = torch.tensor([9, 2, 1]), torch.tensor([0, 5, S - 1])
    prefix, ids = random_ids(decoder, 3, S), random_ids(decoder, 3, 9)
    prefilled = [step_through(decoder, prefix[row : row + 1, :start], [])[1] if start else None
                 for row, start in enumerate(starts.tolist())]  # fmt: skip
    states = [state or list(decoder.init_state(1)) for state in prefilled]
    positions = starts[:, None] + torch.arange(9)
    logits, after = decoder(
        ids,
        positions=positions,
        lengths=lengths,
        state=tuple(torch.cat(t) for t in zip(*states, strict=True)),
    )
    for row, (length, state) in enumerate(zip(lengths.tolist(), states, strict=True)):
        alone, alone_after = decoder(
            ids[row : row + 1, :length], positions=positions[row : row + 1, :length], state=tuple(state)
        )
        torch.testing.assert_close(logits[row], alone[0], rtol=0, atol=1e-5)
        for ours, theirs in zip(after, alone_after, strict=True):
            torch.testing.assert_close(ours[row], theirs[0], rtol=0, atol=1e-5)


def test_logits_and_figures_only_where_they_are_wanted_are_those_of_all_tokens(decoder: Decoder) -> None:
    ids = random_ids(decoder, 3, 9)
    only = torch.rand(3, 9) < 0.4
    all_figures, figures = dict[str, Tensor](), dict[str, Tensor]()
    everywhere, _ = decoder(ids, extras=all_figures)
    logits, state = decoder(ids, only=only, extras=figures)
    torch.testing.assert_close(logits, everywhere[only], atol=1e-5, rtol=0)
    assert state == ()
    assert figures.keys() == all_figures.keys()
    for name, figure in figures.items():
        torch.testing.assert_close(figure, all_figures[name][only], atol=1e-3, rtol=1e-4)


def test_a_step_gives_logits_and_figures_at_the_places_asked_for(decoder: Decoder) -> None:
    ids, places = random_ids(decoder, 2, 9), torch.tensor([[8, 0, 3], [1, 1, 7]])
    all_figures, figures = dict[str, Tensor](), dict[str, Tensor]()
    everywhere, _ = decoder(ids, extras=all_figures)
    logits, after = decoder(ids, state=decoder.init_state(2), at=places, extras=figures)
    rows = torch.arange(2)[:, None]
    torch.testing.assert_close(logits, everywhere[rows, places], atol=1e-5, rtol=0)
    for name, figure in figures.items():
        torch.testing.assert_close(figure, all_figures[name][rows, places], atol=1e-3, rtol=1e-4)
    for ours, theirs in zip(after, decoder(ids, state=decoder.init_state(2))[1], strict=True):
        assert torch.equal(ours, theirs)


def test_state_specs_name_and_shape_every_state_tensor() -> None:
    decoder = Decoder(HYBRID)
    assert decoder.state_specs() == (
        StateSpec(0, "key", "kv", (1, 256, 32)),
        StateSpec(0, "value", "kv", (1, 256, 32)),
        StateSpec(1, "retention", "recurrent", (2, 32, 64)),
    )
    assert decoder.state_specs()[2].past == "past.01.retention"
    assert decoder.state_specs()[2].present == "present.01.retention"
    state = decoder.init_state(3)
    assert [tuple(tensor.shape) for tensor in state] == [(3, *s.shape) for s in decoder.state_specs()]
    _, after = decoder(torch.zeros(3, 1, dtype=torch.long), state=state)
    assert [t.shape for t in after] == [t.shape for t in state]
    assert all(tensor.dtype == torch.float32 and not tensor.any() for tensor in state)


def test_too_many_tokens_are_refused_with_the_limit() -> None:
    with pytest.raises(ValueError, match="129 tokens were given, but max_length is 128"):
        Decoder(PRESETS["llama-tiny"])(torch.zeros(1, 129, dtype=torch.long))


def test_half_precision_weights_serve_from_a_float32_state(decoder: Decoder) -> None:
    ids = random_ids(decoder, 1, 20)
    expected, _ = decoder(ids)
    decoder.bfloat16()
    logits, _ = decoder(ids, state=decoder.init_state(1))
    assert logits.dtype == torch.bfloat16
    # bfloat16 keeps 8 bits; a few roundings in a row reach several per cent of the logits' spread.
    assert (logits - expected[:, -1]).abs().max() < 0.25 * expected.std()


def test_initial_weights_give_a_near_uniform_prediction() -> None:
    for config in CONFIGS.values():
        decoder = Decoder(ModelConfig(**config.model_dump() | {"tied_head": True}))
        ids = random_ids(decoder, 4, 64)
        loss = F.cross_entropy(decoder(ids)[0].flatten(0, 1), torch.randint(0, 256, (256,)))
        # GPT-2's logits begin with a spread of 0.4, which costs 0.4² / 2 nats, and a sample errs.
        allowed = 0.15 if config.position == "learned" else 0.1
        assert abs(loss.item() - torch.tensor(256.0).log().item()) < allowed


def test_initial_weights_have_the_promised_spread() -> None:
    decoder = Decoder(PRESETS["atlas"])
    spread = {name: parameter.std().item() for name, parameter in decoder.named_parameters()}
    expected = {
        "embedding.weight": 0.02,
        "layers.0.ffn.router.weight": 0.02,
        "layers.0.mixer.query.weight": 192**-0.5,
        "layers.0.ffn.gate_up": 192**-0.5,
        "layers.0.ffn.down": (256 * 8) ** -0.5,
        "layers.0.mixer.out.weight": (256 * 8) ** -0.5,
    }
    assert {name: spread[name] for name in expected} == pytest.approx(expected, rel=0.05)


def test_gpt2_begins_in_the_proportions_of_its_paper_at_any_width() -> None:
    decoder = Decoder(PRESETS["mini-claude-tiny"])  # width 128, two layers
    spread = {name: parameter.std().item() for name, parameter in decoder.named_parameters()}
    expected = {
        "embedding.weight": 0.4 * 128**-0.5,
        "position.weight": 0.2 * 128**-0.5,
        "layers.0.mixer.query.weight": 0.4 * 128**-0.5,
        "layers.0.mixer.out.weight": 0.2 * 128**-0.5,
        "layers.0.ffn.up.weight": 0.4 * 128**-0.5,
        "layers.0.ffn.down.weight": 0.2 * 512**-0.5,
    }
    assert {name: spread[name] for name in expected} == pytest.approx(expected, rel=0.05)


@contextmanager
def drawn_in_float64() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


def golden_run(config: ModelConfig, num_steps: int) -> list[float]:
    """Losses of AdamW on one fixed random batch, router losses included.

    In float64 from the first weight on: in float32 another processor's rounding sends a token to another
    expert, and the runs part.
    """
    torch.manual_seed(1234)
    with drawn_in_float64():
        decoder = Decoder(config).double()
    ids = torch.randint(0, config.vocab_size, (4, 33))
    optimizer = torch.optim.AdamW(decoder.parameters(), lr=3e-3)
    losses = []
    for _ in range(num_steps):
        routing: list[Tensor] = []
        logits, _ = decoder(ids[:, :-1], routing=routing)
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        if routing:
            summary = summarize_routing(config, routing)
            loss = loss + summary.loss
            decoder.balance_experts(summary.load)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name", CONFIGS)
def test_twenty_training_steps_give_the_recorded_losses(name: str) -> None:
    """A refactoring leaves these identical; other processors' instructions moved them by less than 1e-8."""
    recorded = json.loads(GOLDEN.read_text())[name]
    losses = golden_run(CONFIGS[name], len(recorded))
    assert len(losses) == 20
    assert losses == pytest.approx(recorded, abs=1e-6)
    assert losses[-1] < losses[0] - 1


@pytest.mark.parametrize("position", ["learned", "rope"])
def test_what_the_layers_read_is_scaled_then_placed_then_normalised(position: str) -> None:
    changes = {"position": position, "embedding_scale": 3.0, "embedding_norm": True, "norm": "layernorm"}
    decoder = Decoder(ModelConfig(**PRESETS["llama-tiny"].model_dump() | changes)).requires_grad_(False)
    decoder.embedding_norm.weight.uniform_(0.5, 2)
    read: list[Tensor] = []
    decoder.layers[0].register_forward_pre_hook(lambda module, args: read.append(args[0]))
    ids = random_ids(decoder, 2, 9)
    decoder(ids)
    x = 3 * decoder.embedding.weight[ids]
    if decoder.position is not None:
        x = x + decoder.position.weight[:9]
    x = x - x.mean(-1, keepdim=True)
    expected = x / (x.square().mean(-1, keepdim=True) + decoder.config.norm_eps).sqrt()
    torch.testing.assert_close(read[0], expected * decoder.embedding_norm.weight, rtol=0, atol=1e-5)

"""Under autocast, what must not be rounded stays in float32: states, sums, routers, norms, losses."""

from collections.abc import Iterator
from itertools import count

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from tests.training.test_trainer import batches, small
from training.blocks.forward_pass import ForwardPass
from training.blocks.moe import MoE
from training.blocks.retention import chunkwise, decay_rates, parallel, recurrent
from training.blocks.sufficient_statistics import SufficientStatsEncoder
from training.decoder import Decoder
from training.hardware import HardwareError, build_accelerator
from training.lowering import Eager
from training.presets import PRESETS
from training.trainer import Trainer

BF16 = {"device_type": "cpu", "dtype": torch.bfloat16}


@pytest.fixture(autouse=True)
def _accelerate_forgets_its_precision() -> Iterator[None]:
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


def a_pass(T: int) -> ForwardPass:
    return ForwardPass(torch.arange(T)[None], None, None, Eager(), routing=[])


@pytest.mark.parametrize("balancing", ["loss", "bias"])
def test_a_routers_logits_are_those_of_float32(balancing: str) -> None:
    moe = MoE(PRESETS["retnet-moe-tiny"].model_copy(update={"balancing": balancing}))
    for parameter in moe.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, plain, cast = torch.randn(1, 33, 64), a_pass(33), a_pass(33)
    moe(x, plain)
    with torch.autocast(**BF16):
        moe(x, cast)
    assert plain.routing is not None
    assert cast.routing is not None
    assert cast.routing[0].dtype == torch.float32
    assert torch.equal(cast.routing[0], plain.routing[0])


@pytest.mark.parametrize("form", [recurrent, parallel, chunkwise])
def test_retention_and_its_state_are_those_of_float32(form: object) -> None:
    assert callable(form)
    q, k = torch.randn(2, 2, 70, 2, 8).unbind()
    v, gamma = torch.randn(2, 70, 2, 16), decay_rates(2).float()
    expected = form(q, k, v, gamma, None)
    with torch.autocast(**BF16):
        found = form(q, k, v, gamma, None)
        halved = form(q.bfloat16(), k.bfloat16(), v.bfloat16(), gamma, None)
    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)
    assert {tensor.dtype for tensor in halved} == {torch.float32}


def test_running_sums_go_on_growing_beyond_what_bfloat16_can_count() -> None:
    """In bfloat16 a sum of ones stops at 256."""
    encoder, T = SufficientStatsEncoder(4, 4), 2000
    nn.init.zeros_(encoder.counts.weight)  # every count is σ(0) = ½
    with torch.autocast(**BF16):
        _, _, sums = encoder(torch.randn(1, T, 4), None, a_pass(T))
    assert sums.dtype == torch.float32
    assert sums[0, :2].tolist() == pytest.approx([T / 2, T / 2])


@pytest.mark.parametrize("name", ["atlas", "arslm-tiny", "gpt2-tiny", "llama-tiny", "bayesian-tiny"])
def test_norms_and_the_residual_stream_are_float32(name: str) -> None:
    decoder, seen = Decoder(PRESETS[name]), list[tuple[torch.dtype, torch.dtype]]()

    def note(_: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.append((inputs[0].dtype, output.dtype))

    for module in decoder.modules():
        if isinstance(module, nn.LayerNorm | nn.RMSNorm):
            module.register_forward_hook(note)
    with torch.autocast(**BF16):
        decoder(torch.arange(9)[None])
    assert len(seen) >= 2 * len(decoder.layers)
    assert set(seen) == {(torch.float32, torch.float32)}


def losses(name: str, precision: str) -> list[float]:
    AcceleratorState._reset_state(True)
    known = small(name, mixed_precision=precision, steps=20)
    torch.manual_seed(known.seed)
    trainer = Trainer(known, Decoder(known.model), batches(), [batches(seed=1)[0]])
    return [trainer.train_step().loss for _ in range(20)]


@pytest.mark.parametrize(
    "name", ["retnet-moe-tiny", "llama-tiny", "gpt2-tiny", "arslm-tiny", "bayesian-tiny"]
)
def test_bf16_learns_as_float32_does(name: str) -> None:
    """bfloat16 keeps 8 bits, so a logit is off by up to 1 %; the runs part slowly and end alike."""
    exact, rounded = losses(name, "no"), losses(name, "bf16")
    assert exact != rounded
    assert rounded[0] == pytest.approx(exact[0], rel=2e-3)
    assert rounded == pytest.approx(exact, rel=0.05)


def test_fp16_without_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(HardwareError, match="fp16, but there is no GPU: choose bf16 or no"):
        build_accelerator("fp16")


def with_scaler(scale: float) -> Trainer:
    """A trainer whose loss is scaled as under fp16, on a CPU."""
    known = small("llama-tiny")
    torch.manual_seed(known.seed)
    accelerator = build_accelerator("no")
    accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=3)
    return Trainer(known, Decoder(known.model), batches(), [batches(seed=1)[0]], accelerator)


def test_a_step_that_overflows_is_left_out_and_scaled_less() -> None:
    trainer = with_scaler(3e38)
    before = {name: tensor.clone() for name, tensor in trainer.decoder.named_parameters()}
    report = next(report for _ in count() if (report := trainer.train_step()).gradient_norm is None)
    assert report.step == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trainer.decoder.named_parameters())
    scale = trainer.accelerator.scaler
    assert scale is not None
    assert scale.get_scale() == pytest.approx(1.5e38)


def test_a_resumed_run_scales_on_as_it_did() -> None:
    straight = with_scaler(1024.0)
    expected = [straight.train_step().loss for _ in range(8)]
    first = with_scaler(1024.0)
    for _ in range(4):
        first.train_step()
    saved = {name: tensor.clone() for name, tensor in first.tensors().items()}
    assert saved["scaler/scale"] == 2048  # grown once
    second = with_scaler(7.0)
    second.restore(4, saved)
    assert [second.train_step().loss for _ in range(4)] == expected[4:]
    for name, tensor in straight.tensors().items():
        assert torch.equal(tensor, second.tensors()[name]), name

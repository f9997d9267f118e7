"""Many ranks and many parts learn what one learns: on two processes of a CPU, over gloo."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator, DistributedType
from torch import Tensor
from typer.testing import CliRunner

from tests.training.test_trainer import batches, build, small
from training.__main__ import app
from training.data.batches import IGNORED, Batch
from training.decoder import Decoder
from training.events import read_events
from training.hardware import HardwareError, build_accelerator
from training.presets import PRESETS
from training.recipes import recipe
from training.run import Run
from training.snapshots import load_newest
from training.trainer import Trainer

STEPS, PATIENCE = 20, 120.0
CLOSE = 1e-5  # float32 sums in another order, over twenty steps; measured: 1e-6


def train(name: str, directory: Path, *options: str) -> str:
    """One rank, in this process."""
    done = CliRunner().invoke(app, ["train", name, "--output", str(directory), *options])
    assert done.exit_code == 0, done.output
    return done.output


def command(name: str, directory: Path, *options: str) -> list[str]:
    """Two ranks."""
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    return [*launch, "-m", "training", "train", name, "--output", str(directory), *options]


def train_on_two_ranks(name: str, directory: Path, *options: str) -> str:
    done = subprocess.run(
        command(name, directory, *options),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Path]:
    """The run of so many steps that one rank made, once."""

    @cache
    def run(name: str, steps: int) -> Path:
        directory = tmp_path_factory.mktemp("alone") / name
        train(name, directory, "--steps", str(steps))
        return directory

    return run


def events(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(directory / "events.jsonl") if event["event"] == kind]


def curve(directory: Path) -> list[list[float]]:
    """Each step's losses and gradient norm."""
    keys = ("loss", "routing_loss", "belief_loss", "gradient_norm")
    return [[event[key] for key in keys] for event in events(directory, "step")]


CASES = [
    ("llama-tiny", []),
    ("retnet-moe-tiny", []),
    ("retnet-moe-tiny", ["--sharded"]),
    ("bayesian-tiny", ["--sharded"]),
    ("gpt2-tiny", ["--accumulation", "2", "--gradient-checkpointing"]),
    ("gpt2-tiny", ["--accumulation", "2", "--gradient-checkpointing", "--sharded"]),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), CASES)
def test_two_ranks_have_the_losses_of_one(
    alone: Callable[[str, int], Path], tmp_path: Path, name: str, options: list[str]
) -> None:
    one, two = alone(name, STEPS), tmp_path / "two"
    told = train_on_two_ranks(name, two, "--steps", str(STEPS), *options)
    for kind in ("start", "validation", "checkpoint", "end"):
        assert len(events(two, kind)) == len(events(one, kind)), kind
    assert told.count("Model:") == 1
    assert len(curve(one)) == len(curve(two)) == STEPS
    torch.testing.assert_close(torch.tensor(curve(two)), torch.tensor(curve(one)), rtol=CLOSE, atol=CLOSE)
    loads = [[event["expert_load"] for event in events(run, "step")] for run in (one, two)]
    torch.testing.assert_close(torch.tensor(loads[1]), torch.tensor(loads[0]), rtol=0, atol=2e-4)  # rounded
    losses = [[event["loss"] for event in events(run, "validation")] for run in (one, two)]
    assert losses[1] == pytest.approx(losses[0], abs=CLOSE)


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--sharded"]])
def test_a_run_stopped_on_two_ranks_goes_on_on_one(
    alone: Callable[[str, int], Path], tmp_path: Path, options: list[str]
) -> None:
    """SIGTERM to the launcher reaches all ranks; they stop after the same step, once it is saved."""
    directory = tmp_path / "run"
    process = subprocess.Popen(
        command("llama-tiny", directory, "--steps", "240", *options),
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    deadline = time.monotonic() + PATIENCE
    while not (directory / "checkpoints").exists():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    told, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode != 0
    assert told.count("and saved. Continue with --resume.") == 1, told
    saved, _ = load_newest(directory / "checkpoints")
    assert f"Stopped after step {saved.step} and saved" in told
    assert saved.step < 240
    assert set(saved.tensors) == set(Run.resume(directory).trainer.tensors())
    assert f"Resuming after step {saved.step}" in train("llama-tiny", directory, "--resume")
    straight, resumed = curve(alone("llama-tiny", 240)), curve(directory)
    assert len(resumed) == len(straight)
    # Rounding grows with the steps; a lost moment or weight shows at once.
    after = slice(saved.step - 5, saved.step + 5)
    torch.testing.assert_close(
        torch.tensor(resumed[after]), torch.tensor(straight[after]), rtol=1e-3, atol=1e-3
    )


def uneven(num_rows: int = 6) -> Batch:
    """Rows with very different numbers of learned tokens, so that a mean of means is wrong."""
    batch = batches(batch_size=num_rows)[0]
    targets = batch.targets.clone()
    for row in range(num_rows):
        targets[row, : -1 - row] = IGNORED
    return Batch(batch.input_ids, targets, batch.valid)


def gradients(name: str, **changes: object) -> tuple[float, dict[str, Tensor]]:
    """The loss and the first moments of one step."""
    known = small(name, batch_size=6, clip_norm=1e9, **changes)
    torch.manual_seed(known.seed)
    trainer = Trainer(known, Decoder(known.model), [uneven()], [])  # type: ignore[arg-type]
    loss = trainer.train_step().loss
    return loss, {k: v for k, v in trainer.tensors().items() if k.startswith("exp_avg/")}


@pytest.mark.parametrize("num_parts", [2, 4, 6])
@pytest.mark.parametrize("name", ["llama-tiny", "gpt2-tiny", "arslm-tiny"])
def test_a_token_counts_alike_in_whatever_part_it_is(name: str, num_parts: int) -> None:
    whole, whole_moments = gradients(name)
    loss, moments = gradients(name, accumulation=num_parts)
    assert loss == pytest.approx(whole, abs=1e-6)
    for key, moment in moments.items():
        torch.testing.assert_close(moment, whole_moments[key], rtol=1e-4, atol=1e-8, msg=key)


def test_the_load_of_all_parts_moves_the_experts_biases() -> None:
    """Each part alone may be balanced otherwise; a bias follows the sum."""
    base = small().model.model_dump() | {"balancing": "bias"}
    trainers = [build(small(model=base, accumulation=parts)) for parts in (1, 4)]
    loads = [torch.tensor(trainer.train_step().expert_load) for trainer in trainers]
    torch.testing.assert_close(loads[1], loads[0])
    is_clear = (loads[0] - 0.25).abs() > 1e-6  # at the mean itself, rounding decides the sign
    assert is_clear.sum() >= 6
    biases = [
        torch.stack(
            [t for name, t in trainer.decoder.own_tensors().items() if name.endswith("selection_bias")]
        )
        for trainer in trainers
    ]
    assert torch.equal(biases[1][is_clear], biases[0][is_clear])


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if name.endswith("-tiny")))
def test_computing_activations_twice_changes_nothing(name: str) -> None:
    plain, twice = (build(small(name, gradient_checkpointing=on)) for on in (False, True))
    for _ in range(2):
        assert twice.train_step() == plain.train_step()
    for key, tensor in plain.tensors().items():
        assert torch.equal(tensor, twice.tensors()[key]), key


def test_computing_activations_twice_keeps_less() -> None:
    kept = []
    for is_on in (False, True):
        trainer, total = build(small("llama-tiny", gradient_checkpointing=is_on)), 0

        def note(tensor: Tensor) -> Tensor:
            nonlocal total
            total += tensor.numel()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            trainer._model(batches()[0])
        kept.append(total)
    assert kept[1] < 0.5 * kept[0]


def test_parts_make_up_the_batch() -> None:
    batch = batches()[0]
    parts = [batch.part(number, 3) for number in range(3)]
    assert batch.part(0, 1) is batch
    assert [len(part.input_ids) for part in parts] == [2, 1, 1]
    for name in ("input_ids", "targets", "valid"):
        rows = {tuple(row.tolist()) for part in parts for row in getattr(part, name)}
        assert rows == {tuple(row.tolist()) for row in getattr(batch, name)}
    assert sum(part.num_learned for part in parts) == batch.num_learned


@pytest.mark.parametrize("name", sorted(name for name in PRESETS if name.endswith("-tiny")))
def test_a_rank_without_rows_learns_nothing_and_breaks_nothing(name: str) -> None:
    trainer = build(small(name))
    nothing = batches()[0].part(7, 8)
    assert (nothing.num_learned, nothing.num_valid) == (0, 0)
    assert trainer._model(nothing).cross_entropy == 0


def test_parts_without_a_row_are_refused() -> None:
    with pytest.raises(
        HardwareError, match=r"batch_size is 4, but 1 ranks × 5 parts need at least a row each"
    ):
        build(small(batch_size=4, accumulation=5))


def test_a_launchers_own_sharding_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Accelerator, "distributed_type", DistributedType.FSDP)
    with pytest.raises(
        HardwareError, match="the launcher asks for FSDP: launch without it, and give --sharded"
    ):
        build_accelerator("no")


def test_the_defaults_are_one_part_in_float32() -> None:
    known = recipe("atlas")
    assert (known.mixed_precision, known.accumulation) == ("no", 1)
    assert (known.gradient_checkpointing, known.sharded) == (False, False)

"""Runs that begin from another model, with all weights or an adapter, from the command line to the files."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from tests.training.test_ranks import curve, train, train_on_two_ranks
from tests.training.test_resume import ignore, never, short, stop_after
from training.__main__ import main
from training.beginning import stamp
from training.checkpoint import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CheckpointError, load_model
from training.lora import load_adapted
from training.recipes import Lora, Recipe
from training.run import Interrupted, Run
from training.snapshots import load_newest


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run's model, to begin from."""
    directory = tmp_path_factory.mktemp("runs") / "base"
    Run.start(directory, short()).complete(should_stop=never, on_step=ignore)
    return directory / "production"


def tuned(base: Path, **changes: object) -> Recipe:
    """A short run on the base with an adapter."""
    return short(base=stamp(base).model_dump(), lora=Lora(rank=2).model_dump(), **changes)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["training", *map(str, arguments)])
    main()


def test_a_run_with_all_weights_begins_as_its_base(base: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", short(base=stamp(base).model_dump()))
    begun = run.trainer.decoder.own_tensors()
    assert all(torch.equal(begun[k], v) for k, v in load_model(base).own_tensors().items())
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "run" / "tokenizer" / name).read_bytes() == (base / name).read_bytes()
    fresh = Run.start(tmp_path / "fresh", short()).trainer.train_step().loss
    assert run.trainer.train_step().loss < fresh - 1


def test_a_run_with_an_adapter_leaves_the_adapter_and_its_base_is_found(base: Path, tmp_path: Path) -> None:
    run = Run.start(tmp_path / "run", tuned(base))
    run.complete(should_stop=never, on_step=ignore)
    for name in ("milestone", "production"):
        files = {path.name for path in (tmp_path / "run" / name).iterdir()}
        assert {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "tokenizer.json", "recipe.json"} <= files
        assert "model.safetensors" not in files
    named = json.loads((run.production / ADAPTER_CONFIG).read_text())
    assert named["base_model_name_or_path"] == str(base)
    ids = torch.arange(40)[None]
    with torch.no_grad():
        kept, own = load_adapted(run.production)(ids)[0], run.trainer.decoder(ids)[0]
        assert torch.equal(kept, own)
        assert (load_model(run.production)(ids)[0] - own).abs().max() <= 1e-5


def test_a_stopped_run_with_an_adapter_resumes_to_the_same_end(base: Path, tmp_path: Path) -> None:
    straight = Run.start(tmp_path / "straight", tuned(base))
    straight.complete(should_stop=never, on_step=ignore)
    with pytest.raises(Interrupted):
        Run.start(tmp_path / "run", tuned(base)).complete(should_stop=stop_after(6), on_step=ignore)
    saved, _ = load_newest(tmp_path / "run" / "checkpoints")
    assert all(".lora_" in name for name in saved.tensors if "/" in name)
    resumed = Run.resume(tmp_path / "run")
    resumed.complete(should_stop=never, on_step=ignore)
    ends = [(run.production / ADAPTER_WEIGHTS).read_bytes() for run in (straight, resumed)]
    assert ends[0] == ends[1]


def test_an_adapter_without_a_base_stands_beside_drawn_weights(tmp_path: Path) -> None:
    """They are those that a run without an adapter begins with, and move with the run's directory."""
    run = Run.start(tmp_path / "run", short(lora=Lora(rank=2).model_dump()))
    run.complete(should_stop=never, on_step=ignore)
    plain = Run.start(tmp_path / "plain", short()).trainer.decoder.own_tensors()
    drawn = load_model(tmp_path / "run" / "base").own_tensors()
    assert all(torch.equal(drawn[name], tensor) for name, tensor in plain.items())
    (tmp_path / "run").rename(tmp_path / "moved")
    assert load_model(tmp_path / "moved" / "production").config == run.trainer.decoder.config


def test_a_base_that_has_changed_is_refused_and_nothing_is_touched(base: Path, tmp_path: Path) -> None:
    shutil.copytree(base, tmp_path / "base")
    with pytest.raises(Interrupted):
        Run.start(tmp_path / "run", tuned(tmp_path / "base")).complete(
            should_stop=stop_after(4), on_step=ignore
        )
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(CheckpointError, match="base has changed since the run was started on it"):
        Run.resume(tmp_path / "run")
    weights.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors is missing"):
        Run.resume(tmp_path / "run")
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--lora-rank", "2", "--lora-targets", "router"], "'router' is no linear layer"),
        (["--lora-rank", "2", "--lora-targets", "ffn.down"], "three-dimensional"),
        (["--lora-alpha", "2"], "give --lora-rank, too"),
        (["--from", "nowhere"], "--from nowhere: neither a model directory nor a finished run in"),
        (["--resume", "--lora-rank", "2"], "leave --lora-rank out"),
    ],
)
def test_what_cannot_be_tuned_is_one_sentence_and_leaves_nothing(
    options: list[str],
    sentence: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="1"):
        call(monkeypatch, "train", "retnet-moe-tiny", *options)
    assert sentence in capsys.readouterr().err
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_the_command_line_tunes_evaluates_and_merges(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    lora = ("--lora-rank", "2", "--lora-targets", "query,value,out")
    call(monkeypatch, "train", "retnet-moe-tiny", "--steps", "3", "--from", base.parent, *lora)
    run = tmp_path / "training/runs/retnet-moe-tiny"
    saved = Recipe.model_validate_json((run / "recipe.json").read_text())
    assert saved.lora == Lora(rank=2, alpha=4, targets=("query", "value", "out"))
    assert saved.base == stamp(base)
    call(monkeypatch, "evaluate", "retnet-moe-tiny")
    call(monkeypatch, "merge", "retnet-moe-tiny", "whole")
    adapted, whole = load_model(run / "production"), load_model(tmp_path / "whole")
    assert all(torch.equal(whole.own_tensors()[k], v) for k, v in adapted.own_tensors().items())
    assert (tmp_path / "whole" / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        call(monkeypatch, "merge", "retnet-moe-tiny", "whole")
    assert "whole exists: give another directory" in capsys.readouterr().err
    call(monkeypatch, "train", "retnet-moe-tiny", "--steps", "2", "--from", "whole", "--output", "again")


@pytest.mark.slow
def test_an_adapter_is_trained_by_sharded_ranks_as_by_one(base: Path, tmp_path: Path) -> None:
    options = ("--steps", "20", "--from", str(base), "--lora-rank", "4")
    train("retnet-moe-tiny", tmp_path / "one", *options)
    train_on_two_ranks("retnet-moe-tiny", tmp_path / "two", *options, "--sharded")
    one, two = (torch.tensor(curve(tmp_path / name)) for name in ("one", "two"))
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
    adapters = [load_model(tmp_path / name / "production").own_tensors() for name in ("one", "two")]
    for name, tensor in adapters[0].items():
        torch.testing.assert_close(adapters[1][name], tensor, rtol=1e-3, atol=1e-5, msg=name)

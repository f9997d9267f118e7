"""Adapters: what they learn, how they are kept, and that merging them changes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.training.test_decoder_parity import GPT2, gpt2, gpt2_tensors
from tests.training.test_trainer import batches, build, small
from training.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CheckpointError,
    hash_weights,
    load_model,
    save_model,
)
from training.config import ModelConfig
from training.decoder import Decoder
from training.lora import add_adapter, fused_delta, load_adapted, merged, save_adapter
from training.presets import PRESETS
from training.recipes import Base, Lora
from training.trainer import Trainer

TINY = sorted(name for name in PRESETS if name.endswith("-tiny"))
CLOSE = 1e-5  # of logits; float32, a product taken apart


def adapted(name: str, *targets: str, steps: int = 3) -> tuple[Decoder, Trainer]:
    """A decoder whose adapter has learned for some steps."""
    known = small(name, lora=Lora(rank=4, alpha=8, targets=targets or ("query", "value")))
    torch.manual_seed(known.seed)
    decoder = Decoder(known.model)
    assert known.lora is not None
    add_adapter(decoder, known.lora)
    trainer = Trainer(known, decoder, batches(), [])
    for _ in range(steps):
        trainer.train_step()
    return decoder, trainer


def logits(decoder: Decoder) -> Tensor:
    with torch.no_grad():
        return decoder(batches()[3].input_ids)[0]


@pytest.mark.parametrize("name", TINY)
def test_only_the_adapter_learns_and_only_it_is_saved(name: str) -> None:
    torch.manual_seed(0)
    before = Decoder(small(name).model).own_tensors()
    decoder, trainer = adapted(name)
    learning = {key for key, parameter in decoder.named_parameters() if parameter.requires_grad}
    assert all(".lora_A." in key or ".lora_B." in key for key in learning)
    assert len(learning) == 2 * 2 * len(decoder.layers)
    saved = {key.partition("/")[2] for key in trainer.tensors() if key.startswith("exp_avg/")}
    assert saved == learning
    assert {k.partition("/")[2] for k in trainer.tensors() if k.startswith("weight/")} == learning
    own = {key.replace(".base_layer.", "."): tensor for key, tensor in decoder.own_tensors().items()}
    assert all(torch.equal(own[key], tensor) for key, tensor in before.items())
    moved = [decoder.get_parameter(key) for key in learning if ".lora_B." in key]
    assert all(parameter.abs().max() > 0 for parameter in moved)


def test_an_adapter_begins_as_nothing_and_then_lowers_the_loss() -> None:
    decoder, trainer = adapted("llama-tiny", "query", "key", "value", "out", "ffn.up", "ffn.down", steps=0)
    torch.manual_seed(0)
    assert torch.equal(logits(decoder), logits(Decoder(decoder.config)))
    losses = [trainer.train_step().loss for _ in range(30)]
    assert sum(losses[-5:]) < 0.95 * sum(losses[:5])


@pytest.mark.parametrize("name", TINY)
def test_merged_logits_are_those_with_the_adapter_on(name: str) -> None:
    decoder, _ = adapted(name, "query", "key", "value", "mixer.out")
    plain = merged(decoder)
    assert type(plain) is Decoder
    assert plain.own_tensors().keys() == Decoder(decoder.config).own_tensors().keys()
    torch.manual_seed(0)
    base = Decoder(decoder.config)
    with_adapter = logits(decoder)
    assert (logits(plain) - with_adapter).abs().max() <= CLOSE
    assert (logits(base) - with_adapter).abs().max() > 100 * CLOSE


def test_what_is_no_target_stays_as_it_is_when_merged() -> None:
    decoder, _ = adapted("gpt2-tiny", "query", "value")
    torch.manual_seed(0)
    before, after = Decoder(decoder.config).own_tensors(), merged(decoder).own_tensors()
    changed = {name for name, tensor in before.items() if not torch.equal(tensor, after[name])}
    assert changed == {f"layers.{i}.mixer.{part}.weight" for i in (0, 1) for part in ("query", "value")}


def test_gpt2s_fused_weight_takes_the_adapter_and_its_key_block_stays() -> None:
    """ΔW = [(s·B_q A_q)ᵀ, 0, (s·B_v A_v)ᵀ] on `c_attn`, computed by transformers itself."""
    theirs: Any = gpt2().eval()
    ours = Decoder.from_tensors(ModelConfig(**GPT2), dict(gpt2_tensors(theirs.state_dict())))
    add_adapter(ours, Lora(rank=4, alpha=8, targets=("query", "value")))
    with torch.no_grad():
        for name, parameter in ours.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.3)
    ids, C = torch.randint(0, ours.config.vocab_size, (2, 11)), ours.config.d_model
    with torch.no_grad():
        expected, base = ours(ids)[0], theirs(ids).logits
        keys = [block.attn.c_attn.weight[:, C : 2 * C].clone() for block in theirs.transformer.h]
        for layer, block in enumerate(theirs.transformer.h):
            block.attn.c_attn.weight += fused_delta(ours, layer)
        found = theirs(ids).logits
    assert (found - expected).abs().max() <= CLOSE
    assert (base - expected).abs().max() > 1e-2
    for block, key in zip(theirs.transformer.h, keys, strict=True):
        assert torch.equal(block.attn.c_attn.weight[:, C : 2 * C], key)


@pytest.mark.parametrize(
    ("name", "target", "sentence"),
    [
        (
            "llama-tiny",
            "c_attn",
            r"'c_attn' is no linear layer .* allows ffn\.down, ffn\.gate, .*mixer\.query",
        ),
        ("llama-tiny", "head", "'head' is no linear layer"),  # tied
        ("retnet-moe-tiny", "router", "'router' is no linear layer"),
        ("retnet-moe-tiny", "down", "experts are one three-dimensional weight"),
        ("retnet-moe-tiny", "ffn.gate_up", "experts are one three-dimensional weight"),
    ],
)
def test_a_target_out_of_reach_is_refused(name: str, target: str, sentence: str) -> None:
    decoder = Decoder(PRESETS[name])
    with pytest.raises(CheckpointError, match=sentence):
        add_adapter(decoder, Lora(targets=("query", target)))
    assert all(parameter.requires_grad for parameter in decoder.parameters())


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Path, Decoder]:
    """An adapter beside its base: base/ and adapter/."""
    decoder, _ = adapted("gpt2-tiny", "query", "value", "ffn.up")
    torch.manual_seed(0)
    save_model(tmp_path / "base", Decoder(decoder.config))
    base = Base(path=Path("../base"), sha256=hash_weights(tmp_path / "base"))
    save_adapter(tmp_path / "adapter", decoder, base, companions={"note.txt": "mine"})
    return tmp_path / "adapter", decoder


def test_an_adapter_comes_back_and_a_model_directory_may_be_one(saved: tuple[Path, Decoder]) -> None:
    directory, decoder = saved
    assert {path.name for path in directory.iterdir()} == {ADAPTER_CONFIG, ADAPTER_WEIGHTS, "note.txt"}
    assert torch.equal(logits(load_adapted(directory)), logits(decoder))
    assert (logits(load_model(directory)) - logits(decoder)).abs().max() <= CLOSE


def test_peft_itself_reads_the_adapter(saved: tuple[Path, Decoder]) -> None:
    directory, decoder = saved
    loaded = PeftModel.from_pretrained(load_model(directory.parent / "base"), str(directory))
    assert torch.equal(logits(loaded.base_model.model), logits(decoder))


def test_an_adapter_that_peft_wrote_is_read(saved: tuple[Path, Decoder], tmp_path: Path) -> None:
    directory, decoder = saved
    base = load_model(tmp_path / "base")
    theirs = PeftModel.from_pretrained(base, str(directory))
    theirs.save_pretrained(str(tmp_path / "theirs"), save_embedding_layers=False)
    change(tmp_path / "theirs" / ADAPTER_CONFIG, base_model_name_or_path="../base")
    assert torch.equal(logits(load_adapted(tmp_path / "theirs")), logits(decoder))


def change(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def truncate(directory: Path) -> None:
    content = (directory / ADAPTER_WEIGHTS).read_bytes()
    (directory / ADAPTER_WEIGHTS).write_bytes(content[:-9])


def edit(directory: Path, act: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(directory / ADAPTER_WEIGHTS)
    act(tensors)
    save_file(tensors, directory / ADAPTER_WEIGHTS)


def another_base(directory: Path) -> None:
    save_model(directory.parent / "base", Decoder(PRESETS["gpt2-tiny"]), replace=True)


FIRST = "base_model.model.layers.0.ffn.up.lora_A.weight"


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        (truncate, rf"{ADAPTER_WEIGHTS} is truncated or corrupt"),
        (lambda d: (d / ADAPTER_WEIGHTS).unlink(), rf"{ADAPTER_WEIGHTS} is missing"),
        (
            lambda d: edit(d, lambda t: t.pop(FIRST)),
            r"1 tensors are missing.* first layers\.0\.ffn\.up\.lora_A",
        ),
        (lambda d: edit(d, lambda t: t.update(x=torch.ones(1))), r"does not fit .*1 tensors.* first x"),
        (lambda d: edit(d, lambda t: t.update({FIRST: torch.ones(2, 2)})), r"another shape, first layers\.0"),
        (lambda d: (d / ADAPTER_CONFIG).write_text("{"), rf"{ADAPTER_CONFIG} is no configuration of a LoRA"),
        (lambda d: change(d / ADAPTER_CONFIG, peft_type="IA3"), r"of the kind 'IA3'; supported is 'LORA'"),
        (lambda d: change(d / ADAPTER_CONFIG, rranks=3), rf"{ADAPTER_CONFIG} is no configuration of a LoRA"),
        (lambda d: change(d / ADAPTER_CONFIG, target_modules=["c_attn"]), r"'c_attn' is no linear layer"),
        (lambda d: change(d / ADAPTER_CONFIG, r=5), r"another shape, first"),
        (lambda d: change(d / ADAPTER_CONFIG, use_dora=True), r"sets use_dora, which is not supported"),
        (lambda d: change(d / ADAPTER_CONFIG, modules_to_save=["head"]), r"sets modules_to_save, which"),
        (lambda d: change(d / ADAPTER_CONFIG, target_modules="all-linear"), r"give a list of names"),
        (lambda d: change(d / ADAPTER_CONFIG, base_model_name_or_path=None), "names no base_model_name"),
        (
            lambda d: change(d / ADAPTER_CONFIG, base_model_name_or_path="gone"),
            r"gone is missing: it is the base",
        ),
        (another_base, r"base has changed since the adapter in .*adapter was trained on it"),
    ],
)
def test_a_broken_or_foreign_adapter_is_named(
    saved: tuple[Path, Decoder], damage: Callable[[Path], None], sentence: str
) -> None:
    damage(saved[0])
    with pytest.raises(CheckpointError, match=sentence):
        load_model(saved[0])


def test_a_run_with_an_adapter_resumes_to_the_bit() -> None:
    straight, trainer = adapted("llama-tiny", steps=6)
    _, first = adapted("llama-tiny", steps=3)
    kept = {name: tensor.clone() for name, tensor in first.tensors().items()}
    second, other = adapted("llama-tiny", steps=0)
    other.restore(3, kept)
    for _ in range(3):
        other.train_step()
    for name, tensor in trainer.tensors().items():
        assert torch.equal(tensor, other.tensors()[name]), name
    assert torch.equal(logits(second), logits(straight))


def test_an_adapter_leaves_the_experts_biases_alone() -> None:
    """They belong to the base, and are not in the adapter's file."""
    model = small().model.model_dump() | {"balancing": "bias"}
    known = small(model=model, lora=Lora(rank=2, targets=("query",)))
    decoder = Decoder(known.model)
    assert known.lora is not None
    add_adapter(decoder, known.lora)
    Trainer(known, decoder, batches(), []).train_step()
    biases = [tensor for name, tensor in decoder.own_tensors().items() if name.endswith("selection_bias")]
    assert biases
    assert not any(bias.any() for bias in biases)
    assert build(small(model=model)).train_step().step == 1

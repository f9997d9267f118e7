"""Low-rank adapters (LoRA, arXiv 2106.09685): PEFT's, beside a decoder's linear layers and in its files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model_state_dict, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from safetensors.torch import save_file
from torch import Tensor, nn

from training.checkpoint import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CheckpointError,
    atomic_directory,
    hash_weights,
    load_model,
    read_tensors,
    whole_model,
    write_companions,
)
from training.config import ModelConfig
from training.decoder import Decoder
from training.recipes import Base, Lora

NAME = "default"  # PEFT's for the only adapter
PREFIX = "base_model.model."  # of the names in PEFT's file: its wrapper around the model
FREE = {  # what may be set in a configuration that is read
    *("r", "lora_alpha", "target_modules", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "task_type", "auto_mapping", "use_rslora", "lora_dropout", "init_lora_weights"),
    *("rank_pattern", "alpha_pattern"),
}
HASH = "sha256:"  # before what `revision` says of the base


def add_adapter(decoder: Decoder, lora: Lora) -> None:
    """Put an adapter beside the linear layers that `lora` names, and freeze everything else.

    Its first output is zero; what it starts from is drawn from PyTorch's generator. Raises CheckpointError
    for a target that is not there or out of an adapter's reach.
    """
    check_targets(decoder, lora.targets)
    config = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=sorted(lora.targets))
    _inject(decoder, config)


def _inject(decoder: Decoder, config: LoraConfig) -> None:
    inject_adapter_in_model(config, decoder, adapter_name=NAME)


def check_targets(decoder: Decoder, targets: tuple[str, ...]) -> None:
    """Raises CheckpointError unless each of `targets` ends the name of some linear layer in reach."""
    known = reachable(decoder)
    stacked = {name for name, parameter in decoder.named_parameters() if parameter.ndim == 3}
    for target in targets:
        if any(_ends(name, target) for name in stacked):
            raise CheckpointError(
                f"LoRA target {target!r}: a layer's experts are one three-dimensional weight, which has no "
                f"linear layer to adapt; this model allows {_endings(known)}"
            )
        if not any(_ends(name, target) for name in known):
            raise CheckpointError(
                f"LoRA target {target!r} is no linear layer that an adapter reaches; this model allows "
                f"{_endings(known)}"
            )


def reachable(decoder: Decoder) -> list[str]:
    """The linear layers that an adapter may stand beside.

    Not a router, whose weight is read without calling it, and not a tied head, whose weight the embedding is.
    """
    tied = {"head"} if decoder.config.tied_head else set[str]()
    return [
        name
        for name, module in decoder.named_modules()
        if isinstance(module, nn.Linear) and name not in tied and not name.endswith("router")
    ]


def _ends(name: str, ending: str) -> bool:
    return name == ending or name.endswith(f".{ending}")


def _endings(names: list[str]) -> str:
    return ", ".join(sorted({".".join(name.split(".")[-2:]) for name in names}))


def save_adapter(
    directory: Path, decoder: Decoder, base: Base, *, companions: Mapping[str, str], replace: bool = False
) -> None:
    """Write the adapter as PEFT does, with its base and the hash of that in it: all at once, or nothing."""
    configs: Any = decoder.peft_config
    config = configs[NAME].to_dict()
    config |= {"base_model_name_or_path": str(base.path), "revision": HASH + base.sha256}
    config["inference_mode"] = True
    with atomic_directory(directory, replace=replace) as fresh:
        text = json.dumps(config, indent=2, sort_keys=True, default=sorted) + "\n"  # PEFT has sets
        (fresh / ADAPTER_CONFIG).write_text(text, encoding="utf-8")
        tensors = get_peft_model_state_dict(decoder, adapter_name=NAME, save_embedding_layers=False)
        save_file({PREFIX + name: t.contiguous() for name, t in tensors.items()}, fresh / ADAPTER_WEIGHTS)
        write_companions(fresh, companions)


def load_adapted(directory: Path) -> Decoder:
    """The base of the adapter in `directory`, with the adapter beside it.

    Raises CheckpointError naming the file: damaged, of another kind, or made for another base.
    """
    config = _read_config(directory / ADAPTER_CONFIG)
    decoder = _load_base(directory, config)
    path = directory / ADAPTER_WEIGHTS
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in read_tensors(path).items()}
    try:
        check_targets(decoder, tuple(sorted(config.target_modules or ())))
        _inject(decoder, config)
    except (ValueError, RuntimeError) as error:
        raise CheckpointError(f"{directory / ADAPTER_CONFIG} does not fit its base: {error}") from error
    _fill(decoder, tensors, path)
    return decoder


def _read_config(path: Path) -> LoraConfig:
    try:
        fields = json.loads(path.read_bytes())
        kind = fields["peft_type"]
        if kind != "LORA":
            raise CheckpointError(f"{path} is of the kind {kind!r}; supported is 'LORA'")
        config = LoraConfig(**{key: value for key, value in fields.items() if key != "peft_type"})
        _refuse_variants(config, path)
        return config
    except CheckpointError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is no configuration of a LoRA adapter: {error!r}") from error


def _refuse_variants(config: LoraConfig, path: Path) -> None:
    """CheckpointError for what a configuration may ask for and `merged` would not compute."""
    usual = vars(LoraConfig())
    odd = [key for key, value in vars(config).items() if key not in FREE and value != usual[key]]
    if odd:
        raise CheckpointError(f"{path} sets {', '.join(sorted(odd))}, which is not supported: plain LoRA is")
    if not isinstance(config.target_modules, list | set):
        raise CheckpointError(f"{path}: target_modules is {config.target_modules!r}; give a list of names")


def _load_base(directory: Path, config: LoraConfig) -> Decoder:
    base, expected = whole_model(directory), config.revision
    if expected and expected.startswith(HASH) and HASH + hash_weights(base) != expected:
        raise CheckpointError(
            f"{base} has changed since the adapter in {directory} was trained on it: put the old model back"
        )
    return load_model(base)


@torch.no_grad()
def _fill(decoder: Decoder, tensors: dict[str, Tensor], path: Path) -> None:
    own = {name.replace(f".{NAME}.", "."): p for name, p in decoder.named_parameters() if ".lora_" in name}
    odd = own.keys() ^ tensors.keys()
    odd |= {name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape}
    if odd:
        raise CheckpointError(
            f"{path} does not fit {ADAPTER_CONFIG}: {len(odd)} tensors are missing, unknown or of another "
            f"shape, first {min(odd)}"
        )
    for name, parameter in own.items():
        parameter.copy_(tensors[name])


@torch.no_grad()
def rebuilt(config: ModelConfig, lora: Lora, tensors: Mapping[str, Tensor]) -> Decoder:
    """The decoder with an adapter that has these tensors, named as in its own `own_tensors()`."""
    decoder = Decoder.from_tensors(config, _without_adapter(tensors))
    with torch.random.fork_rng(devices=[]):  # what is drawn here is overwritten
        add_adapter(decoder, lora)
    for name, parameter in decoder.named_parameters():
        if ".lora_" in name:
            parameter.copy_(tensors[name])
    return decoder


def _without_adapter(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The base's tensors by the names that they have without an adapter."""
    return {n.replace(".base_layer.", "."): t.detach() for n, t in tensors.items() if ".lora_" not in n}


def merged(decoder: Decoder) -> Decoder:
    """A plain decoder that computes what `decoder` does with its adapter; `decoder` stays as it is."""
    tensors = _without_adapter(decoder.own_tensors())
    for name, module in decoder.named_modules():
        if isinstance(module, LoraLayer):
            tensors[f"{name}.weight"] = tensors[f"{name}.weight"] + delta(module)
    return Decoder.from_tensors(decoder.config, tensors)


@torch.no_grad()
def delta(module: Any) -> Tensor:
    """What an adapter adds to a linear layer's weight, (out, in): s · B A; zeros without one."""
    is_adapted = isinstance(module, LoraLayer)
    added: Tensor = module.get_delta_weight(NAME) if is_adapted else torch.zeros_like(module.weight)
    return added


def fused_delta(decoder: Decoder, layer: int) -> Tensor:
    """What the adapter adds to GPT-2's fused `c_attn.weight` of `layer`, (C, 3C).

    ΔW = [(s·B_q A_q)ᵀ, (s·B_k A_k)ᵀ, (s·B_v A_v)ᵀ], for c_attn multiplies from the right; a part without an
    adapter is zero, so that its block stays as it is.
    """
    mixer: Any = decoder.layers[layer].mixer
    return torch.cat([delta(part).T for part in (mixer.query, mixer.key, mixer.value)], dim=1)

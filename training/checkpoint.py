"""A model as a directory: `config.json`, `model.safetensors`, and the tokenizer's files beside them."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from training.config import ModelConfig
from training.decoder import Decoder

CONFIG, WEIGHTS = "config.json", "model.safetensors"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class CheckpointError(ValueError):
    """A model directory that cannot be read; the message names the file and the problem."""


@contextmanager
def atomic_directory(path: Path, *, replace: bool = False) -> Iterator[Path]:
    """A new directory to fill, which becomes `path` when the block ends well and vanishes when it fails.

    Everything in it is on the disk before the name appears. With `replace` an older `path` is moved aside and
    then removed: between the two renames the name is free for an instant, but no half-written directory ever
    has it. Raises FileExistsError without `replace`.
    """
    if path.exists() and not replace:
        raise FileExistsError(f"{path} exists: choose another directory, or ask for it to be replaced")
    path.parent.mkdir(parents=True, exist_ok=True)
    workspace = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        fresh, old = workspace / "new", workspace / "old"
        fresh.mkdir()
        yield fresh
        _sync_tree(fresh)
        _take_place(path, fresh, old)
        _sync(path.parent)
    finally:
        shutil.rmtree(workspace)


def _take_place(path: Path, fresh: Path, old: Path) -> None:
    if not path.exists():
        fresh.rename(path)
        return
    path.rename(old)
    try:
        fresh.rename(path)
    except OSError:
        old.rename(path)
        raise


def _sync_tree(directory: Path) -> None:
    for entry in sorted(directory.rglob("*")):
        _sync(entry)
    _sync(directory)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_model(
    directory: Path, decoder: Decoder, *, companions: Mapping[str, str] | None = None, replace: bool = False
) -> None:
    """Write a model directory at once: the whole of it appears, or nothing.

    `companions` are further files, name -> text: the tokenizer's (`TOKENIZER_FILES`) and any others.
    Raises FileExistsError without `replace`, ValueError for a companion that is no plain or no free name.
    """
    with atomic_directory(directory, replace=replace) as fresh:
        (fresh / CONFIG).write_text(decoder.config.model_dump_json(indent=2) + "\n", encoding="utf-8")
        tensors = {name: tensor.contiguous() for name, tensor in decoder.own_tensors().items()}
        save_file(tensors, fresh / WEIGHTS)
        write_companions(fresh, companions or {})


def write_companions(directory: Path, companions: Mapping[str, str]) -> None:
    """Write further files, name -> text, beside a model. Raises ValueError for no plain or no free name."""
    for name, text in companions.items():
        if Path(name).name != name or (directory / name).exists():
            raise ValueError(f"companion {name!r}: give a plain file name other than {CONFIG} and {WEIGHTS}")
        (directory / name).write_text(text, encoding="utf-8")


def load_model(directory: Path) -> Decoder:
    """The decoder that `save_model` wrote, or an adapter merged with its base. Raises CheckpointError."""
    if (directory / ADAPTER_CONFIG).is_file():
        from training.lora import load_adapted, merged  # PEFT takes seconds to import

        return merged(load_adapted(directory))
    config = load_config(directory)
    path = directory / WEIGHTS
    try:
        return Decoder.from_tensors(config, read_tensors(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path} does not fit {directory / CONFIG}: {error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in a safetensors file. Raises CheckpointError."""
    try:
        return load_file(path)
    except FileNotFoundError:
        raise _missing(path) from None
    except SafetensorError as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}") from error


def hash_weights(directory: Path) -> str:
    """The SHA-256 of a model directory's weights. Raises CheckpointError."""
    path = directory / WEIGHTS
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise _missing(path) from None


def whole_model(directory: Path) -> Path:
    """`directory`, or if it holds an adapter that of its base. Raises CheckpointError if the base is gone."""
    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        return directory
    try:
        base = directory / Path(json.loads(path.read_bytes())["base_model_name_or_path"])  # absolute stays so
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} names no base_model_name_or_path: {error!r}") from error
    if not base.is_dir():
        raise CheckpointError(f"{base} is missing: it is the base of the adapter in {directory}")
    return base


def load_config(directory: Path) -> ModelConfig:
    """The configuration in a model directory, or of an adapter's base. Raises CheckpointError."""
    path = whole_model(directory) / CONFIG
    try:
        return ModelConfig.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        raise _missing(path) from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {describe_errors(error)}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error


def describe_errors(error: ValidationError) -> str:
    """One line for each field that is wrong: its name, what was given, what is allowed."""
    return "; ".join(
        f"{'.'.join(map(str, item['loc']))} = {item['input']!r}: {item['msg']}"
        if item["loc"]
        else item["msg"]
        for item in error.errors()
    )


def _missing(path: Path) -> CheckpointError:
    return CheckpointError(f"{path} is missing: a model directory holds {CONFIG} and {WEIGHTS}")

"""Where a run begins: its directory, its tokenizer, and its first weights, drawn or another model's."""

from collections.abc import Mapping
from pathlib import Path

import torch

from training.chat import CHAT_FORMATS
from training.checkpoint import (
    TOKENIZER_FILES,
    CheckpointError,
    atomic_directory,
    hash_weights,
    load_config,
    load_model,
    save_model,
    write_companions,
)
from training.config import ModelConfig
from training.data.choice import FileData
from training.data.corpus import Corpus
from training.data.load import load_corpus
from training.decoder import Decoder
from training.recipes import Base, Recipe
from training.tokenizer import load_tokenizer, tokenizer_files, train_tokenizer

RECIPE, TOKENIZER, BASE = "recipe.json", "tokenizer", "base"


class RunError(ValueError):
    """A run that cannot be started or resumed as asked; the message says what to do."""


def begin(directory: Path, recipe: Recipe) -> Corpus:
    """Write a new run's recipe, tokenizer and, for an adapter on drawn weights, these; returns its data.

    Raises RunError if `directory` exists, DataError for data that can't be trained on, and CheckpointError
    for a base that can't be. Then nothing is written.
    """
    if directory.exists():
        raise RunError(f"{directory} exists: continue it with --resume, remove it, or give another --output")
    if isinstance(recipe.data, FileData):
        recipe = recipe.model_copy(update={"data": recipe.data.stamped()})
    corpus = load_corpus(recipe.data, seed=recipe.seed)
    with atomic_directory(directory) as fresh:
        (fresh / TOKENIZER).mkdir()
        write_companions(fresh / TOKENIZER, _tokenizer_of(recipe, corpus))
        recipe = recipe.model_copy(update={"model": _model_of(recipe, fresh / TOKENIZER)})
        if recipe.lora is not None:
            _check_targets(recipe)
            recipe = recipe.model_copy(update={"base": recipe.base or _draw_base(recipe, fresh)})
        (fresh / RECIPE).write_text(recipe_text(recipe), encoding="utf-8")
    return corpus


def recipe_text(recipe: Recipe) -> str:
    """The content of `recipe.json`."""
    return recipe.model_dump_json(indent=2) + "\n"


def read_tokenizer_files(directory: Path) -> dict[str, str]:
    """The tokenizer's files in a model directory, name -> text. Raises CheckpointError for a broken one."""
    load_tokenizer(directory)
    paths = [directory / name for name in TOKENIZER_FILES]
    return {path.name: path.read_text(encoding="utf-8") for path in paths if path.is_file()}


def _tokenizer_of(recipe: Recipe, corpus: Corpus) -> Mapping[str, str]:
    """The base's, or one that learns from the data."""
    if recipe.base is not None:
        return read_tokenizer_files(recipe.base.path)
    chat = CHAT_FORMATS[recipe.chat]
    return tokenizer_files(train_tokenizer(corpus.texts(chat), vocab_size=recipe.model.vocab_size, chat=chat))


def _model_of(recipe: Recipe, tokenizer: Path) -> ModelConfig:
    if recipe.base is not None:
        return load_config(recipe.base.path)
    vocabulary = load_tokenizer(tokenizer).get_vocab_size()
    return recipe.model.model_copy(update={"vocab_size": vocabulary})


def _check_targets(recipe: Recipe) -> None:
    from training.lora import check_targets  # PEFT takes seconds to import

    assert recipe.lora is not None
    with torch.device("meta"):
        check_targets(Decoder(recipe.model), recipe.lora.targets)


def _draw_base(recipe: Recipe, directory: Path) -> Base:
    torch.manual_seed(recipe.seed)
    save_model(directory / BASE, Decoder(recipe.model))
    return Base(path=Path(BASE), sha256=hash_weights(directory / BASE))


def stamp(path: Path) -> Base:
    """The model directory at `path` as a base, to be known again. Raises CheckpointError."""
    load_config(path)
    return Base(path=path.resolve(), sha256=hash_weights(path))


def first_decoder(recipe: Recipe, directory: Path) -> Decoder:
    """The decoder of the run in `directory` before its first step, its weights drawn or its base's.

    Raises CheckpointError for a base that is gone, broken or no longer what it was.
    """
    if recipe.base is None:
        return Decoder(recipe.model)
    path = directory / recipe.base.path  # an absolute path stays as it is
    if hash_weights(path) != recipe.base.sha256:
        raise CheckpointError(f"{path} has changed since the run was started on it: put the old model back")
    decoder = load_model(path)
    if recipe.lora is not None:
        from training.lora import add_adapter

        add_adapter(decoder, recipe.lora)
    return decoder


def save_trained(directory: Path, decoder: Decoder, recipe: Recipe, *, companions: Mapping[str, str]) -> None:
    """Write the model of the run that holds `directory`, whole or its adapter alone, over an old one."""
    if recipe.lora is None:
        save_model(directory, decoder, companions=companions, replace=True)
        return
    from training.lora import save_adapter

    assert recipe.base is not None
    base = recipe.base.model_copy(update={"path": Path("..") / recipe.base.path})  # if it is relative
    save_adapter(directory, decoder, base, companions=companions, replace=True)

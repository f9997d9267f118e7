"""SmolLM2 through three doors, a GGUF file, a Hugging Face directory and a safetensors file: one model."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from tokenizers import Tokenizer

from export.formats.imported import ImportedModel
from export.formats.readers import read_model
from export.sources import MODELS
from tests.export.three_doors import directory_from_gguf


@pytest.fixture(scope="module")
def packaged() -> ImportedModel:
    return read_model(MODELS["smollm2"].locate())


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return directory_from_gguf(MODELS["smollm2"].locate(), tmp_path_factory.mktemp("doors") / "smollm2")


def logits(model: ImportedModel) -> torch.Tensor:
    text = topics["exceptions"][:2000]
    ids = Tokenizer.from_str(model.tokenizer.tokenizer).encode(text).ids
    with torch.no_grad():
        values: torch.Tensor = model.decoder.eval()(torch.tensor([ids]))[0]
    return values


@pytest.mark.slow
@pytest.mark.parametrize("door", ["", "model.safetensors"], ids=["directory", "file"])
def test_every_door_leads_to_the_same_logits(door: str, packaged: ImportedModel, directory: Path) -> None:
    other = read_model(directory / door)
    assert other.decoder.config == packaged.decoder.config
    assert other.special_tokens.eos == packaged.special_tokens.eos
    assert other.tokenizer.tokenizer == packaged.tokenizer.tokenizer
    # Both dequantize by the same table, so that not a bit may differ.
    assert torch.equal(logits(other), logits(packaged))

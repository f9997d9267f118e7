"""SmolLM2 through three doors, a GGUF file, a Hugging Face directory and a safetensors file: one model."""

from pathlib import Path
from pydoc_data.topics import topics

import pytest
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

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


@pytest.mark.slow
def test_imported_smollm2_equals_transformers_on_two_thousand_tokens_of_text(
    packaged: ImportedModel, directory: Path
) -> None:
    """The directory holds what transformers reads in the same GGUF file."""
    text = "\n".join(topics[name] for name in ("exceptions", "customization", "strings", "specialnames"))
    ids = torch.tensor(Tokenizer.from_str(packaged.tokenizer.tokenizer).encode(text).ids[:2000]).view(4, 500)
    reference = LlamaForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    ours, theirs = [], []
    for row in ids:
        with torch.no_grad():
            a, b = packaged.decoder(row[None])[0][0], reference(row[None]).logits[0]
        # The accuracy that the project promises; logits reach 40, so this is 3e-5 of their size.
        assert (a - b).abs().max() <= 1e-3
        ours.append(torch.nn.functional.cross_entropy(a[:-1].double(), row[1:]))
        theirs.append(torch.nn.functional.cross_entropy(b[:-1].double(), row[1:]))
    perplexities = [torch.stack(losses).mean().exp().item() for losses in (ours, theirs)]
    assert f"{perplexities[0]:.4g}" == f"{perplexities[1]:.4g}"

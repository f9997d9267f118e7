"""Hugging Face directories: the logits of transformers for every architecture in the table."""

from pathlib import Path

import pytest
import torch

from export.formats.architectures import ARCHITECTURES
from export.formats.readers import read_model
from tests.export.hf_models import CASES, Case, write_model

IDS = torch.randint(0, 300, (2, 96), generator=torch.Generator().manual_seed(0))


def test_every_architecture_in_the_table_has_a_parity_test() -> None:
    """RetNet's is test_retnet.py: transformers has none."""
    assert {case.model_type for case in CASES} | {"retnet"} == set(ARCHITECTURES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.model_type}-{case.name}")
def test_logits_equal_those_of_transformers(case: Case, tmp_path: Path) -> None:
    theirs = case.make()
    decoder = read_model(write_model(tmp_path, theirs)).decoder.eval()
    with torch.no_grad():
        expected, (actual, _) = theirs(IDS).logits, decoder(IDS)
    assert expected.std() > 0.5
    # The project's bound for float32: the same weights, sums in another order.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)


def test_far_positions_are_rotated_as_transformers_rotates_them(tmp_path: Path) -> None:
    (case,) = (case for case in CASES if case.name == "long-rope")
    theirs = case.make(num_hidden_layers=1)
    decoder = read_model(write_model(tmp_path, theirs)).decoder.eval()
    ids = torch.randint(0, 300, (1, 2500), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected, (actual, _) = theirs(ids).logits, decoder(ids)
    # Theirs has the angles in float32, which at position 2,500 are off by 1e-4; measured 2e-5.
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-4)

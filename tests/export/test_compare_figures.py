"""An exact graph's figures pass; wrong rows, a forgotten state and another model's figures don't."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from export.compare_figures import compare_figures
from export.formats.imported import ImportedModel, TokenizerFiles
from export.graph import graph_from_decoder
from export.graph_session import GraphSession, Logits, Slots, Tokens
from export.manifest import SpecialTokens
from export.tolerances import TOLERANCES
from tests.export.test_compare import TEXT, byte_tokenizer, spread_out
from training.decoder import Decoder
from training.presets import preset


@pytest.fixture(scope="module")
def model() -> ImportedModel:
    torch.manual_seed(0)
    files, special = TokenizerFiles(byte_tokenizer(), {}), SpecialTokens(bos=None, eos=(0,), pad=None)
    return ImportedModel(spread_out(Decoder(preset("bayesian-tiny"))), files, special, TEXT)


@pytest.fixture(scope="module", params=["onnxruntime", "standard"])
def graph(
    request: pytest.FixtureRequest, model: ImportedModel, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path, names = tmp_path_factory.mktemp("graph") / "model.onnx", model.decoder.extra_names()
    return graph_from_decoder(model.decoder, path, lowering=request.param, extra_outputs=names)


def session(graph: Path, model: ImportedModel, kind: type[GraphSession] = GraphSession) -> GraphSession:
    specs, figures = model.decoder.state_specs(), model.decoder.extra_names()
    return kind(graph, specs, is_fused="onnxruntime" in str(graph), threads=1, figures=figures)


def test_an_exact_graph_tells_what_the_decoder_tells(model: ImportedModel, graph: Path) -> None:
    figures = compare_figures(session(graph, model), model, TOLERANCES["fp32"])
    assert [figure.name for figure in figures] == ["confidence", "epistemic", "aleatoric", "thought_budget"]
    assert all(figure.passed for figure in figures)
    assert {figure.steps for figure in figures} == {3 + 3 + 3 * 32}


class SwappedRows(GraphSession):
    """Tells a batch's figures of the wrong rows."""

    def decode(self, slots: Slots, tokens: Tokens, positions: Tokens) -> Logits:
        """As the parent, but told in another order."""
        logits = super().decode(slots, tokens, positions)
        self.told = {name: values[::-1] for name, values in self.told.items()}
        return logits


class Forgetful(GraphSession):
    """Starts each chunk without the sums of those before."""

    def append(self, slots: Slots, *arguments: Any) -> Logits:
        """As the parent, but the statistics begin anew."""
        for spec, array in zip(slots.specs, slots.arrays, strict=True):
            if spec.kind == "recurrent":
                array[:] = 0
        return super().append(slots, *arguments)


class NotANumber(GraphSession):
    """Tells a NaN."""

    def append(self, *arguments: Any) -> Logits:
        """As the parent, but for its figures."""
        logits = super().append(*arguments)
        self.told = {name: np.full_like(values, np.nan) for name, values in self.told.items()}
        return logits


@pytest.mark.parametrize("kind", [SwappedRows, Forgetful, NotANumber])
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_told_wrongly_fails(
    kind: type[GraphSession], precision: Any, model: ImportedModel, graph: Path
) -> None:
    tolerance = TOLERANCES[precision]  # type: ignore[index]
    figures = compare_figures(session(graph, model, kind), model, tolerance)
    failed = {figure.name for figure in figures if not figure.passed}
    assert {"confidence", "epistemic", "aleatoric"} & failed


def test_another_models_figures_fail(model: ImportedModel, graph: Path) -> None:
    torch.manual_seed(1)
    other = replace(model, decoder=spread_out(Decoder(preset("bayesian-tiny"))))
    figures = compare_figures(session(graph, model), other, TOLERANCES["int8"])
    assert not all(figure.passed for figure in figures)

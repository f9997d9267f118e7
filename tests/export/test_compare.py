"""Exact graphs pass every scenario, and each kind of wrong graph fails the scenario made for it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from export.compare import Reference, compare_graph, held_out_tokens
from export.comparison import Scenario
from export.errors import ExportError
from export.formats.imported import ImportedModel, TokenizerFiles
from export.graph import graph_from_decoder
from export.graph_session import GraphSession, Logits, Slots, Tokens
from export.manifest import SpecialTokens
from export.measurement import compare_scenario, cut_windows, measure_perplexity
from export.quantize import quantize_graph
from export.scenarios import SCENARIOS
from export.tolerances import TOLERANCES, Tolerance
from training.config import ModelConfig
from training.decoder import Decoder
from training.presets import preset

TEXT = topics["strings"][:4000]
EXACT = TOLERANCES["fp32"]
NAMES = ("llama-tiny", "gpt2-tiny", "retnet-moe-tiny")


def byte_tokenizer() -> str:
    """One token per byte, as many as the tiny presets have."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    text: str = tokenizer.to_str()
    return text


def spread_out(decoder: Decoder) -> Decoder:
    """Random weights make all logits alike; larger ones make a wrong state show."""
    with torch.no_grad():
        for parameter in decoder.parameters():
            if parameter.ndim > 1:
                parameter *= 2
    return decoder


@pytest.fixture(scope="module")
def tiny_models() -> dict[str, ImportedModel]:
    """Random decoders of three kinds with a byte tokenizer."""
    torch.manual_seed(0)
    files = TokenizerFiles(byte_tokenizer(), {})
    special = SpecialTokens(bos=None, eos=(0,), pad=None)
    return {name: ImportedModel(spread_out(Decoder(preset(name))), files, special, TEXT) for name in NAMES}


@pytest.fixture(scope="module")
def graphs(
    tiny_models: dict[str, ImportedModel], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Their float32 graphs."""
    directory = tmp_path_factory.mktemp("graphs")
    return {
        name: graph_from_decoder(model.decoder, directory / name / "model.onnx", lowering="onnxruntime")
        for name, model in tiny_models.items()
    }


def session(graph: Path, model: ImportedModel, kind: type[GraphSession] = GraphSession) -> GraphSession:
    return kind(graph, model.decoder.state_specs(), is_fused=True, threads=1)


@pytest.mark.parametrize("name", NAMES)
def test_an_exact_graph_passes_every_scenario(
    name: str, tiny_models: dict[str, ImportedModel], graphs: dict[str, Path]
) -> None:
    model, stages = tiny_models[name], []
    scenarios, perplexity, experts = compare_graph(
        session(graphs[name], model), model, tolerance=EXACT, report=stages.append
    )
    assert [s.name for s in scenarios if not s.passed] == []
    assert max(s.max_error for s in scenarios) <= 1e-4
    assert min(s.top1_agreement for s in scenarios) == 1
    assert perplexity.passed
    # float32 both, summed in another order; a loss of 5 has an ulp of 5e-7.
    assert perplexity.ratio == pytest.approx(1, abs=1e-5)
    assert stages == [*(s.name for s in scenarios), "perplexity"]
    assert {s.name for s in scenarios} >= SCENARIOS.keys()
    assert (experts is not None) == (name == "retnet-moe-tiny")


def test_every_expert_is_reached_and_compared(
    tiny_models: dict[str, ImportedModel], graphs: dict[str, Path]
) -> None:
    model = tiny_models["retnet-moe-tiny"]
    scenarios, _, experts = compare_graph(
        session(graphs["retnet-moe-tiny"], model), model, tolerance=EXACT, report=lambda _: None
    )
    assert experts is not None
    assert experts.reached == experts.total == 8
    assert scenarios[-1].name == "every expert"


@pytest.mark.parametrize(("layer", "expert"), [(0, 0), (0, 3), (1, 1)])
def test_a_single_wrong_expert_is_caught(
    layer: int, expert: int, tiny_models: dict[str, ImportedModel], graphs: dict[str, Path]
) -> None:
    model = tiny_models["retnet-moe-tiny"]
    tensors = {name: tensor.clone() for name, tensor in model.decoder.state_dict().items()}
    tensors[f"layers.{layer}.ffn.down"][expert] *= 1.1
    wrong = replace(model, decoder=Decoder.from_tensors(model.decoder.config, tensors))
    scenarios, _, _ = compare_graph(
        session(graphs["retnet-moe-tiny"], model), wrong, tolerance=EXACT, report=lambda _: None
    )
    assert not scenarios[-1].passed


class ShiftedDecode(GraphSession):
    """Puts every decoded token one position too far."""

    def decode(self, slots: Slots, tokens: Tokens, positions: Tokens) -> Logits:
        """As the parent, but wrong."""
        return super().decode(slots, tokens, positions + 1)


class ForgetfulPrefill(GraphSession):
    """Starts every chunk at position 0."""

    def prefill(self, slots: Slots, row: int, tokens: Tokens, start: int = 0) -> Logits:
        """As the parent, but wrong."""
        return super().prefill(slots, row, tokens, 0)


class LeakySlots(Slots):
    """Leaves a finished sequence's recurrent state to the next one."""

    def reuse(self, row: int) -> None:
        """Do nothing."""


class LeakyReuse(GraphSession):
    """Hands out leaky slots."""

    def slots(self, count: int) -> Slots:
        """As the parent, but leaky."""
        return LeakySlots(self.specs, self.dtypes, count)


class SwappedRows(GraphSession):
    """Gives a batch's logits to the wrong rows."""

    def decode(self, slots: Slots, tokens: Tokens, positions: Tokens) -> Logits:
        """As the parent, but in another order."""
        return super().decode(slots, tokens, positions)[::-1]


class NotANumber(GraphSession):
    """Computes a NaN."""

    def append(self, *arguments: Any) -> Logits:
        """As the parent, but for one logit."""
        return self._spoilt(super().append(*arguments))

    def verify(self, *arguments: Any) -> Logits:
        """As the parent, but for one logit."""
        return self._spoilt(super().verify(*arguments))

    def _spoilt(self, logits: Logits) -> Logits:
        logits[..., 3] = np.nan
        return logits


@pytest.mark.parametrize(
    ("kind", "name", "failing"),
    [
        (ShiftedDecode, "llama-tiny", {"greedy decode", "ragged batch", "slot reuse"}),
        (ForgetfulPrefill, "gpt2-tiny", {"chunked prefill"}),
        (LeakyReuse, "retnet-moe-tiny", {"slot reuse"}),
        (SwappedRows, "llama-tiny", {"ragged batch"}),
        (NotANumber, "llama-tiny", set(SCENARIOS)),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_what_is_wrong_fails_where_it_shows(
    kind: type[GraphSession],
    name: str,
    failing: set[str],
    precision: str,
    tiny_models: dict[str, ImportedModel],
    graphs: dict[str, Path],
) -> None:
    model = tiny_models[name]
    tolerance = TOLERANCES[precision]  # type: ignore[index]
    graph, reference, text = (
        session(graphs[name], model, kind),
        Reference(model.decoder),
        held_out_tokens(model),
    )
    results: dict[str, Scenario] = {
        scenario: compare_scenario(scenario, run(graph, text[:96]), reference, tolerance)
        for scenario, run in SCENARIOS.items()
    }
    assert {scenario for scenario, result in results.items() if not result.passed} == failing


def test_perplexity_is_that_of_the_text_under_the_model(
    tiny_models: dict[str, ImportedModel], graphs: dict[str, Path]
) -> None:
    model = tiny_models["llama-tiny"]
    text = held_out_tokens(model)[:600]
    measured = measure_perplexity(
        session(graphs["llama-tiny"], model), Reference(model.decoder), text, name="t", tolerance=EXACT
    )
    windows = torch.from_numpy(cut_windows(text, 8, 128))
    with torch.no_grad():
        logits, _ = model.decoder(windows[:, :-1])
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), windows[:, 1:].flatten())
    assert measured.reference == pytest.approx(loss.exp().item(), rel=1e-6)
    assert measured.graph == pytest.approx(loss.exp().item(), rel=1e-5)
    assert measured.tokens == windows[:, 1:].numel()


def test_a_worse_graph_has_a_perplexity_beyond_the_limit(
    tiny_models: dict[str, ImportedModel], graphs: dict[str, Path], tmp_path: Path
) -> None:
    model = tiny_models["llama-tiny"]
    graph = quantize_graph(graphs["llama-tiny"], tmp_path / "model.onnx", "int4", 128)
    strict = Tolerance("mean", 0.5, 0.5, 0.1)
    measured = measure_perplexity(
        session(graph, model),
        Reference(model.decoder),
        held_out_tokens(model)[:300],
        name="t",
        tolerance=strict,
    )
    assert not measured.passed
    assert measured.ratio != 1


def test_windows_are_spread_and_do_not_overlap() -> None:
    windows = cut_windows(np.arange(1000), 8, 100)
    assert windows.shape == (8, 101)
    assert windows[0, 0] == 0
    assert (windows[1:, 0] > windows[:-1, -1]).all()
    assert cut_windows(np.arange(40), 8, 100).shape == (1, 40)


def test_the_models_own_text_comes_before_the_default(tiny_models: dict[str, ImportedModel]) -> None:
    model = tiny_models["llama-tiny"]
    own = replace(model, held_out="the capital of france is paris. " * 4)
    assert held_out_tokens(own).size == len("the capital of france is paris. " * 4)
    assert held_out_tokens(replace(model, held_out=None)).size > 100_000
    with pytest.raises(ExportError, match="has 5 tokens, at least 33 are needed"):
        held_out_tokens(replace(model, held_out="short"))


def test_a_context_too_short_for_the_scenarios_is_refused(tiny_models: dict[str, ImportedModel]) -> None:
    config = ModelConfig.model_validate(preset("llama-tiny").model_dump() | {"max_length": 64})
    model = replace(tiny_models["llama-tiny"], decoder=Decoder(config))
    never: Callable[..., Any] = GraphSession.__new__
    with pytest.raises(ExportError, match="64 tokens is too short to compare: the least is 128"):
        compare_graph(never(GraphSession), model, tolerance=EXACT, report=lambda _: None)

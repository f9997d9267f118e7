"""Each system's tiny model as an ONNX graph gives PyTorch's logits, in prefill and in decode."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from export.graph import graph_from_decoder
from training.decoder import Decoder
from training.presets import preset

HYBRID = preset("retnet-moe-tiny").model_copy(
    update={"mixer": ("gated_attention", "retention"), "ffn": ("swiglu", "moe"), "position": "rope"}
)
SYSTEMS = {
    name: preset(name) for name in ("arslm-tiny", "mini-claude-tiny", "tars-tiny", "bayesian-tiny")
} | {
    "hybrid": HYBRID,
    "bias-balanced": preset("retnet-moe-tiny").model_copy(
        update={"balancing": "bias", "num_shared_experts": 1}
    ),
}
B, PROMPT = 3, 12


@pytest.fixture(scope="module", params=SYSTEMS)
def exported(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Decoder, Path]:
    """All weights random: initial biases are alike, and the exporter would store them once."""
    torch.manual_seed(0)
    decoder = Decoder(SYSTEMS[request.param]).eval().requires_grad_(False)
    for tensor in decoder.own_tensors().values():
        tensor += 0.1 * torch.randn_like(tensor)
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    return decoder, graph_from_decoder(decoder, path, lowering="onnxruntime")


class Runner:
    """A graph as the wire contract has it: inputs in their order, last logits first, then the states."""

    def __init__(self, path: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [tensor.name for tensor in self._session.get_inputs()]

    def step(self, ids: Tensor, positions: Tensor, past: list[NDArray[Any]]) -> list[NDArray[Any]]:
        lengths = torch.full((ids.shape[0],), ids.shape[1])
        fed = [ids.numpy(), positions.numpy(), lengths.numpy(), lengths[:, None].numpy() - 1, *past]
        logits, *rest = self._session.run(None, dict(zip(self._names, fed, strict=True)))
        return [logits[:, 0], *rest]


def test_prefill_and_decode_give_the_full_sequences_logits(exported: tuple[Decoder, Path]) -> None:
    """Rows are prefilled one by one to unlike lengths, then decoded together, as the engine does."""
    decoder, path = exported
    runner = Runner(path)
    ids = torch.randint(0, decoder.config.vocab_size, (B, PROMPT + B + 8))
    full = decoder(ids)[0].numpy()
    zeros = [tensor.numpy() for tensor in decoder.init_state(1)]
    starts = torch.arange(B) + PROMPT
    rows = [
        runner.step(ids[row : row + 1, :start], torch.arange(int(start))[None], zeros)
        for row, start in enumerate(starts)
    ]
    # float32 through kernels that sum in another order; measured below 2e-6
    for row, start in enumerate(starts):
        np.testing.assert_allclose(rows[row][0][0], full[row, start - 1], rtol=0, atol=2e-5)
    state = [np.concatenate(tensors) for tensors in zip(*(row[1:] for row in rows), strict=True)]
    for number in range(8):
        positions = (starts + number)[:, None]
        logits, *state = runner.step(ids.gather(1, positions), positions, state)
        np.testing.assert_allclose(logits, full[range(B), positions[:, 0]], rtol=0, atol=2e-5)


def test_weights_keep_the_decoders_names(exported: tuple[Decoder, Path]) -> None:
    """But for queries, keys and values in one product."""
    decoder, path = exported
    names = {tensor.name for tensor in onnx.load(path, load_external_data=False).graph.initializer}
    matrices = {name for name, weight in decoder.named_parameters() if weight.ndim > 1}
    packed = {re.sub(r"\b(query|key|value)\.weight$", "qkv.weight", name) for name in matrices - names}
    assert packed <= names


@pytest.mark.parametrize("lowering", ["onnxruntime", "standard"])
def test_extra_outputs_are_the_decoders_figures_at_the_last_token(lowering: Any, tmp_path: Path) -> None:
    """Behind the states, in the order asked for, in prefill and in a step."""
    torch.manual_seed(0)
    decoder = Decoder(SYSTEMS["bayesian-tiny"]).eval().requires_grad_(False)
    for tensor in decoder.own_tensors().values():
        tensor += 0.1 * torch.randn_like(tensor)
    names = ("thought_budget", "epistemic", "confidence")
    path = tmp_path / "model.onnx"
    graph_from_decoder(decoder, path, lowering=lowering, extra_outputs=names)
    outputs = [output.name for output in onnx.load(path, load_external_data=False).graph.output]
    assert tuple(outputs[-3:]) == names
    ids, full = torch.randint(0, 256, (1, PROMPT + 1)), dict[str, Tensor]()
    logits = decoder(ids, extras=full)[0].numpy()
    runner, past = Runner(path), [tensor.numpy() for tensor in decoder.init_state(1)]
    for start, end in ((0, PROMPT), (PROMPT, PROMPT + 1)):
        given, *past = runner.step(ids[:, start:end], torch.arange(start, end)[None], past)
        past, extras = past[:-3], past[-3:]
        np.testing.assert_allclose(given, logits[:, end - 1], rtol=0, atol=2e-5)
        for name, extra in zip(names, extras, strict=True):
            assert extra.shape == (1, 1)
            assert extra.dtype == np.float32
            np.testing.assert_allclose(extra, full[name][:, [end - 1]].numpy(), rtol=1e-4)


def test_an_extra_output_that_the_model_lacks_is_refused_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"\['mood'\] were given; this model has: confidence, epistemic"):
        graph_from_decoder(
            Decoder(preset("bayesian-tiny")), tmp_path / "a", lowering="standard", extra_outputs=("mood",)
        )
    with pytest.raises(ValueError, match=r"\['epistemic'\] were given; this model has: none"):
        graph_from_decoder(
            Decoder(preset("llama-tiny")), tmp_path / "a", lowering="standard", extra_outputs=("epistemic",)
        )

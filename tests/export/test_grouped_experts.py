"""Experts as ordinary products equal eager PyTorch; 1e-4 is float32's rounding over two layers, with room."""

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from export.graph import graph_from_decoder
from export.graph_session import GraphSession
from tests.export.conftest import CONFIGS
from training.config import ModelConfig
from training.decoder import Decoder

TOLERANCE = 1e-4
MIXTURE = CONFIGS["retention_moe"]
MIXTURES: dict[str, ModelConfig] = {
    "one of four": MIXTURE.model_copy(update={"experts_per_token": 1}),
    "two of four": MIXTURE,
    "three of four": MIXTURE.model_copy(update={"experts_per_token": 3}),
    "all of four": MIXTURE.model_copy(update={"experts_per_token": 4}),
    "by bias, and a shared one": MIXTURE.model_copy(update={"balancing": "bias", "num_shared_experts": 1}),
}


@pytest.fixture(scope="module", params=MIXTURES)
def decoder(request) -> Decoder:
    """Random weights with clear choices: near a tie a rounding error picks another expert."""
    torch.manual_seed(0)
    decoder = Decoder(MIXTURES[request.param]).eval()
    with torch.no_grad():
        for name, parameter in decoder.named_parameters():
            if "router" in name:
                parameter.mul_(50)
    return decoder


@pytest.fixture(scope="module")
def path(decoder, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("grouped")
    return graph_from_decoder(decoder, directory / "g.onnx", lowering="onnxruntime", experts="grouped")


@pytest.fixture(scope="module")
def session(path, decoder) -> GraphSession:
    return GraphSession(path, decoder.state_specs(), is_fused=True, threads=2)


def test_a_prompt_and_what_is_decoded_after_it_equal_eager(session, decoder):
    tokens = np.random.default_rng(1).integers(0, 97, 50)
    with torch.no_grad():
        expected = decoder(torch.from_numpy(tokens)[None])[0][0].numpy()
    slots = session.slots(1)
    logits = session.prefill(slots, 0, tokens[:40])
    np.testing.assert_allclose(logits, expected[39], atol=TOLERANCE)
    for step in range(40, 50):
        logits = session.decode(slots, tokens[step : step + 1], np.array([step]))[0]
        np.testing.assert_allclose(logits, expected[step], atol=TOLERANCE)


def test_every_expert_answers_as_in_eager_whatever_share_of_the_rows_it_has(session, decoder):
    vocabulary = np.arange(97)[:, None]
    routing: list[torch.Tensor] = []
    with torch.no_grad():
        expected, _ = decoder(torch.from_numpy(vocabulary), routing=routing)
    for logits in routing:  # the tokens of the vocabulary send something to each expert
        assert set(logits.topk(decoder.config.experts_per_token).indices.flatten().tolist()) == {0, 1, 2, 3}
    logits = session.append(session.slots(97), 0, vocabulary, np.zeros_like(vocabulary))
    np.testing.assert_allclose(logits, expected[:, 0].numpy(), atol=TOLERANCE)


def test_a_row_has_the_same_bits_alone_and_in_a_crowd(session):
    tokens = np.random.default_rng(2).integers(0, 97, 16)
    alone = [session.decode(session.slots(1), tokens[i : i + 1], np.zeros(1, np.int64))[0] for i in range(16)]
    for crowd in (2, 3, 16):
        together = session.decode(session.slots(crowd), tokens[:crowd], np.zeros(crowd, np.int64))
        np.testing.assert_array_equal(together, alone[:crowd])


def test_each_expert_has_matrices_of_its_own_and_no_weight_is_kept_twice(path, decoder):
    graph = onnx.load(path, load_external_data=False).graph
    assert not Counter(node.op_type for node in graph.node).keys() & {"MoE", "If", "Loop"}
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    assert {shapes[f"layers.1.ffn.gate_up.{expert}"] for expert in range(4)} == {(64, 64)}
    assert {shapes[f"layers.1.ffn.down.{expert}"] for expert in range(4)} == {(32, 64)}
    experts = ("layers.1.ffn.gate_up", "layers.1.ffn.down")
    stored = sum(int(np.prod(shape)) for name, shape in shapes.items() if name.startswith(experts))
    assert stored == decoder.layers[1].ffn.gate_up.numel() + decoder.layers[1].ffn.down.numel()

"""Every lowering computes what eager PyTorch does; 1e-4 is float32's rounding over two layers, with room."""

from collections import Counter
from itertools import product

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper

from export.graph_session import GraphSession
from training.decoder import Decoder

TOLERANCE = 1e-4
NAMES = ("attention", "windowed", "learned_positions", "retention_moe")
LOWERINGS = ("onnxruntime", "standard")
every_graph = pytest.mark.parametrize(("name", "lowering"), [*product(NAMES, LOWERINGS)])


@pytest.fixture
def session(graph_of, decoders, name, lowering) -> GraphSession:
    specs = decoders[name].state_specs()
    return GraphSession(graph_of(name, lowering), specs, is_fused=lowering == "onnxruntime", threads=1)


def random_tokens(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 97, shape)


def full_logits(decoder: Decoder, tokens: np.ndarray) -> np.ndarray:
    """Eager, without state or lowering: (T,) -> (T, V)."""
    with torch.no_grad():
        return decoder(torch.from_numpy(tokens)[None])[0][0].numpy()


@every_graph
def test_full_prefill_equals_eager(session, decoders, name):
    tokens = random_tokens(70)
    logits = session.prefill(session.slots(1), 0, tokens)
    np.testing.assert_allclose(logits, full_logits(decoders[name], tokens)[-1], atol=TOLERANCE)


@every_graph
def test_chunked_prefill_and_64_decode_steps_equal_eager(session, decoders, name):
    tokens = random_tokens(88)
    expected = full_logits(decoders[name], tokens)
    slots = session.slots(1)
    for start, stop in ((0, 7), (7, 8), (8, 24)):
        logits = session.prefill(slots, 0, tokens[start:stop], start)
        np.testing.assert_allclose(logits, expected[stop - 1], atol=TOLERANCE)
    for step in range(24, 88):
        logits = session.decode(slots, tokens[step : step + 1], np.array([step]))[0]
        np.testing.assert_allclose(logits, expected[step], atol=TOLERANCE)


@every_graph
def test_rows_at_different_positions_decode_together(session, decoders, name):
    before = (1, 40, 5, 23)
    tokens = random_tokens(4, 41)
    slots = session.slots(4)
    for row, length in enumerate(before):
        session.prefill(slots, row, tokens[row, :length])
    last = np.array([tokens[row, length] for row, length in enumerate(before)])
    logits = session.decode(slots, last, np.array(before))
    for row, length in enumerate(before):
        expected = full_logits(decoders[name], tokens[row, : length + 1])[-1]
        np.testing.assert_allclose(logits[row], expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "lowering"),
    [(name, "standard") for name in NAMES] + [("retention_moe", "onnxruntime")],
)
def test_ragged_prefill_ignores_what_lies_past_each_length(session, decoders, name):
    lengths = np.array([6, 1, 4])
    tokens = random_tokens(3, 7)
    slots = session.slots(3)
    positions = np.tile(np.arange(6), (3, 1))
    logits = session.append(slots, 0, tokens[:, :6], positions, lengths)
    then = session.decode(slots, tokens[np.arange(3), lengths], lengths)
    for row, length in enumerate(lengths):
        expected = full_logits(decoders[name], tokens[row, : length + 1])
        np.testing.assert_allclose(logits[row], expected[length - 1], atol=TOLERANCE)
        np.testing.assert_allclose(then[row], expected[length], atol=TOLERANCE)


@pytest.mark.parametrize(("name", "lowering"), [("retention_moe", lowering) for lowering in LOWERINGS])
def test_every_expert_of_every_layer_answers_as_in_eager(session, decoders, name, graph_of, lowering):
    vocabulary = np.arange(97)[:, None]
    routing: list[torch.Tensor] = []
    with torch.no_grad():
        expected, _ = decoders[name](torch.from_numpy(vocabulary), routing=routing)
    for logits in routing:  # the tokens of the vocabulary send something to each expert
        assert set(logits.topk(2).indices.flatten().tolist()) == {0, 1, 2, 3}
    logits = session.append(session.slots(97), 0, vocabulary, np.zeros_like(vocabulary))
    np.testing.assert_allclose(logits, expected[:, 0].numpy(), atol=TOLERANCE)


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_the_graph_holds_every_expert(graph_of, lowering):
    model = onnx.load(graph_of("retention_moe", lowering), load_external_data=False)
    experts = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 3 and tensor.dims[0] == 4]
    assert len(experts) == 4  # gate_up and down of two layers


def operators(path) -> Counter:
    return Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)


def test_onnxruntime_gets_one_fused_node_per_block(graph_of):
    attention = operators(graph_of("attention", "onnxruntime"))
    assert attention["GroupQueryAttention"] == 2
    assert attention["RMSNormalization"] + attention["SkipSimplifiedLayerNormalization"] == 5
    assert not attention["Softmax"] + attention["RotaryEmbedding"] + attention["Transpose"]
    assert attention["ReduceMax"] == 1  # total_sequence_length is found once, not per layer
    retention = operators(graph_of("retention_moe", "onnxruntime"))
    assert (retention["LinearAttention"], retention["MoE"]) == (2, 2)
    assert not retention["Softmax"] + retention["TopK"]


@pytest.mark.parametrize("name", NAMES)
def test_the_standard_graph_needs_no_vendor_operators(graph_of, name):
    model = onnx.load(graph_of(name, "standard"), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert not operators(graph_of(name, "standard")).keys() & {"NonZero", "Loop", "If", "Scan"}


def test_a_cache_bound_to_one_buffer_is_not_copied(graph_of, decoders, capfd):
    path, specs = graph_of("attention", "standard"), decoders["attention"].state_specs()
    session = GraphSession(path, specs, is_fused=False, threads=1)
    session.prefill(session.slots(1), 0, random_tokens(5))
    assert "in-place optimization not activated" not in capfd.readouterr().err
    feeds = {spec.past: np.zeros((1, *spec.shape), np.float32) for spec in specs}
    feeds |= {"input_ids": random_tokens(1, 1), "positions": np.array([[0]]), "lengths": np.array([1])}
    feeds["logits_at"] = np.array([[0]])
    ort.InferenceSession(path).run(None, feeds)  # outputs of its own: now it has to copy, and says so
    assert "in-place optimization not activated" in capfd.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_the_onnxruntime_graph_warns_of_nothing(graph_of, decoders, capfd, name):
    session = GraphSession(
        graph_of(name, "onnxruntime"), decoders[name].state_specs(), is_fused=True, threads=1
    )
    slots = session.slots(2)
    session.prefill(slots, 0, random_tokens(5))
    session.decode(slots, random_tokens(2), np.array([5, 0]))
    assert capfd.readouterr().err == ""


def linear_attention(H: int, dk: int, dv: int) -> ort.InferenceSession:
    f, info = TensorProto.FLOAT, helper.make_tensor_value_info
    shapes = {"q": H * dk, "k": H * dk, "v": H * dv, "decay": H}
    state = ["B", H, dk, dv]
    node = helper.make_node(
        "LinearAttention",
        ["q", "k", "v", "past", "decay"],
        ["o", "present"],
        domain="com.microsoft",
        q_num_heads=H,
        kv_num_heads=H,
        update_rule="gated",
        scale=1.0,
    )
    inputs = [info(name, f, ["B", "T", width]) for name, width in shapes.items()] + [info("past", f, state)]
    outputs = [info("o", f, ["B", "T", H * dv]), info("present", f, state)]
    graph = helper.make_graph([node], "one", inputs, outputs)
    opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(model.SerializeToString(), options)


@pytest.mark.parametrize(("H", "dk", "dv"), [(1, 8, 16), (4, 32, 64), (3, 48, 96), (2, 128, 256)])
def test_linear_attention_may_update_its_state_in_place(H, dk, dv):
    session, random = linear_attention(H, dk, dv), np.random.default_rng(0)
    for B, T in product((1, 2, 5), (1, 2, 7, 65)):
        feeds = {
            name: random.standard_normal((B, T, width), np.float32)
            for name, width in (("q", H * dk), ("k", H * dk), ("v", H * dv), ("decay", H))
        }
        feeds["decay"] = -np.abs(feeds["decay"])
        state = random.standard_normal((B, H, dk, dv), np.float32)
        expected = session.run(None, feeds | {"past": state.copy()})
        output, binding = np.empty_like(expected[0]), session.io_binding()
        for name, value in (feeds | {"past": state}).items():
            binding.bind_input(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
        for name, value in (("o", output), ("present", state)):
            binding.bind_output(name, "cpu", 0, np.float32, value.shape, value.ctypes.data)
        session.run_with_iobinding(binding)
        np.testing.assert_array_equal(output, expected[0])
        np.testing.assert_array_equal(state, expected[1])

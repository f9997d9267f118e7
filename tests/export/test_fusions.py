from collections import Counter

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from export.fusions import fuse
from export.onnx_files import load_graph, save_graph

C = 8


def operators(graph: ir.Graph) -> Counter[str]:
    return Counter(node.op_type for node in graph)


@pytest.mark.parametrize(
    ("name", "packed"), [("attention", True), ("windowed", False), ("learned_positions", False)]
)
def test_projections_are_packed_unless_a_bias_or_a_norm_lies_behind(graph_of, name, packed):
    graph = load_graph(graph_of(name, "onnxruntime")).graph
    inputs = [node.inputs[:3] for node in graph if node.op_type == "GroupQueryAttention"]
    assert len(inputs) == 2
    assert all((key is None and value is None) == packed for _, key, value in inputs)


def test_the_packed_weight_holds_query_key_and_value_side_by_side(graph_of, decoders):
    initializers = load_graph(graph_of("attention", "onnxruntime")).graph.initializers
    weights = decoders["attention"].state_dict()
    for layer in ("layers.0", "layers.1"):
        rows = [weights[f"{layer}.mixer.{name}.weight"].numpy() for name in ("query", "key", "value")]
        packed = initializers[f"{layer}.mixer.qkv.weight"].const_value.numpy()
        np.testing.assert_array_equal(packed, np.concatenate(rows).T)


@pytest.mark.parametrize(
    ("name", "number"), [("attention", 3), ("windowed", 3), ("learned_positions", 4), ("retention_moe", 3)]
)
def test_residual_sums_join_the_norms_behind_them(graph_of, name, number):
    # Two layers have two sums each, but the last is read at the chosen tokens only; positions are a sum, too.
    counts = operators(load_graph(graph_of(name, "onnxruntime")).graph)
    assert counts["SkipSimplifiedLayerNormalization"] + counts["SkipLayerNormalization"] == number


def test_the_standard_graph_stays_standard(graph_of):
    assert {node.domain for node in load_graph(graph_of("attention", "standard")).graph} == {""}


def residual_graph(*, is_bias: bool, reads_sum: bool, norm: str) -> ir.Model:
    """norm(x + y), and x + y itself where `reads_sum`; `y` may be a bias."""
    x, y = (ir.val(name, ir.DataType.FLOAT, ["B", "T", C]) for name in "xy")
    scale = ir.val("scale", const_value=ir.tensor(np.linspace(0.5, 2, C, dtype=np.float32), name="scale"))
    bias = ir.val("bias", ir.DataType.FLOAT, [C], const_value=ir.tensor(np.ones(C, np.float32), name="bias"))
    add = ir.node("Add", [x, bias if is_bias else y], name="add")
    add.outputs[0].name, add.outputs[0].dtype, add.outputs[0].shape = "sum", x.dtype, x.shape
    tail = [bias] if norm == "LayerNormalization" else []
    normed = ir.node(norm, [add.outputs[0], scale, *tail], {"epsilon": 1e-5, "axis": -1}, name="norm")
    normed.outputs[0].name, normed.outputs[0].dtype, normed.outputs[0].shape = "normed", x.dtype, x.shape
    nodes, outputs = [add, normed], [normed.outputs[0]]
    if reads_sum:
        doubled = ir.node("Add", [add.outputs[0], add.outputs[0]], name="doubled")
        doubled.outputs[0].name, doubled.outputs[0].dtype, doubled.outputs[0].shape = (
            "twice",
            x.dtype,
            x.shape,
        )
        nodes.append(doubled)
        outputs.append(doubled.outputs[0])
    initializers = [scale, bias]
    imports = {"": 24, "com.microsoft": 1}
    graph = ir.Graph(
        [x, y], outputs, nodes=nodes, initializers=initializers, opset_imports=imports, name="residual"
    )
    return ir.Model(graph, ir_version=10)


def run(model: ir.Model, path) -> list[np.ndarray]:
    session = ort.InferenceSession(save_graph(model, path), providers=["CPUExecutionProvider"])
    rng = np.random.default_rng(0)
    values = {name: rng.standard_normal((2, 3, C), np.float32) for name in "xy"}
    return [np.asarray(array) for array in session.run(None, values)]


@pytest.mark.parametrize("norm", ["RMSNormalization", "LayerNormalization"])
@pytest.mark.parametrize("reads_sum", [True, False])
def test_a_joint_sum_and_norm_is_the_same_function(tmp_path, norm, reads_sum):
    model = residual_graph(is_bias=False, reads_sum=reads_sum, norm=norm)
    before = run(model, tmp_path / "before.onnx")
    fused = fuse(model)
    assert operators(fused.graph)[norm] == 0
    assert operators(fused.graph)["Add"] == int(reads_sum)
    after = run(fused, tmp_path / "after.onnx")
    for mine, theirs in zip(after, before, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)  # float32, summed in another order


def test_a_bias_is_no_residual_sum():
    fused = fuse(residual_graph(is_bias=True, reads_sum=False, norm="RMSNormalization"))
    assert operators(fused.graph) == {"Add": 1, "RMSNormalization": 1}

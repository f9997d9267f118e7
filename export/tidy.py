"""What the exporter leaves behind, put in order: readable names, no detours, no paths of this machine."""

import ast
from collections.abc import Mapping

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ClearMetadataAndDocStringPass, RemoveUnusedNodesPass
from torch import Tensor

from export.fusions import CONTRIB, fuse

SCOPES = "pkg.torch.onnx.name_scopes"
ROOT = "decoder."


def tidy(model: ir.Model, weights: Mapping[str, Tensor]) -> ir.Model:
    """Name nodes and weights after the decoder's, drop reshapes that cancel, forget where the code lay.

    What is for ONNX Runtime is fused, too. `weights` are the decoder's own. Changes `model` and returns it.
    """
    for node in model.graph.all_nodes():
        _skip_cancelling_reshapes(node)
        _shrink_unit_scale(model.graph, node)
    _name_weights(model.graph, weights)
    for node in model.graph.all_nodes():
        node.name = f"{_module_of(node)}/{node.name}".lstrip("/")
    RemoveUnusedNodesPass()(model)
    if CONTRIB in model.opset_imports:
        fuse(model)
    ClearMetadataAndDocStringPass()(model)
    return model


def _skip_cancelling_reshapes(node: ir.Node) -> None:
    """(B, T, H·D) → (B, T, H, D) → (B, T, H·D) is where a block's layout meets an operator's."""
    if node.op_type != "Reshape" or node.outputs[0].is_graph_output():
        return
    source = node.inputs[0]
    while source is not None and (before := source.producer()) and before.op_type == "Reshape":
        source = before.inputs[0]
    assert source is not None
    if source.shape is not None and source.shape == node.outputs[0].shape:
        node.outputs[0].replace_all_uses_with(source)


def _shrink_unit_scale(graph: ir.Graph, node: ir.Node) -> None:
    """A norm without weights gets one row of ones, where the exporter made them as large as the input."""
    scale = node.inputs[1] if node.op_type == "RMSNormalization" else None
    if scale is None or scale.producer() is None:
        return
    source, dtype = node.inputs[0], node.outputs[0].dtype
    assert source is not None
    assert source.shape is not None
    assert dtype is not None
    width = source.shape[-1]
    assert isinstance(width, int)
    name = f"ones.{width}.{dtype.name.lower()}"
    if name not in graph.initializers:
        ones = ir.tensor(np.ones(width, dtype.numpy()), name=name)
        graph.register_initializer(ir.val(name, dtype, [width], const_value=ones))
    node.replace_input_with(1, graph.initializers[name])


def _name_weights(graph: ir.Graph, weights: Mapping[str, Tensor]) -> None:
    for value in [*graph.initializers.values()]:
        assert value.name is not None
        value.name = value.name.removeprefix(ROOT)
    for node in graph.all_nodes():
        weight = node.inputs[1] if node.op_type in ("MatMul", "Gemm") else None
        if weight is not None and weight.const_value is not None:
            weight.name = _original_name(_module_of(node), weight.const_value, weights)
    for node in graph.all_nodes():  # a table that is tied to the head is called after the embedding
        table = node.inputs[0] if node.op_type == "Gather" else None
        if table is not None and table.is_initializer():
            table.name = f"{_module_of(node)}.weight"


def _original_name(module: str, folded: ir.TensorProtocol, weights: Mapping[str, Tensor]) -> str:
    """Which of the module's weights was folded, transposed or cast, into this constant."""
    values = folded.numpy()
    return next(
        name
        for name, weight in weights.items()
        if name.startswith(f"{module}.")
        and sorted(weight.shape) == sorted(values.shape)
        and weight.flatten()[0] == values.flat[0]
    )


def _module_of(node: ir.Node) -> str:
    """The path of the module that made `node`, such as `layers.0.ffn.down`; empty for the decoder's own."""
    scopes: list[str] = ast.literal_eval(node.metadata_props.get(SCOPES, "[]"))
    modules = [scope.removeprefix(ROOT) for scope in scopes if scope.startswith(ROOT)]
    return modules[-1] if modules else ""

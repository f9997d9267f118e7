"""What counts as reading the weights once."""

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from tests.bench.memory_limit import ABSENT, MemoryLimit, step_bytes
from tests.bench.workload import Workload


def graph(path: Path, *, tied: bool) -> Path:
    """An embedding of 8 × 4, a layer of 4 × 4 and a head of 4 × 8 floats, which may be the embedding.

    Its attention stands for all that look rows up in a rotation.
    """
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["x"]),
        helper.make_node("GroupQueryAttention", ["x", "rotation"], ["turned"], domain="com.microsoft"),
        helper.make_node("MatMul", ["turned", "layer"], ["y"]),
        helper.make_node("Gemm", ["y", "table" if tied else "head"], ["logits"], transB=1),
    ]
    shapes = {"table": (8, 4), "rotation": (99, 2), "layer": (4, 4)} | ({} if tied else {"head": (8, 4)})
    weights = [
        helper.make_tensor(name, TensorProto.FLOAT, shape, b"\0" * 4 * shape[0] * shape[1], raw=True)
        for name, shape in shapes.items()
    ]
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, (1,))
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, (1, 8))
    onnx.save(helper.make_model(helper.make_graph(nodes, "toy", [ids], [logits], weights)), path)
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_a_step_reads_its_layers_and_its_head_once_and_not_the_table_it_looks_up_in(tmp_path, tied):
    assert step_bytes(graph(tmp_path / "toy.onnx", tied=tied)) == 4 * (4 * 4 + 8 * 4)


def test_memory_is_read_to_its_end(tmp_path):
    memory = MemoryLimit(graph(tmp_path / "toy.onnx", tied=True))
    assert sum(part.nbytes for part in memory.parts) == 192
    assert memory.rate(Workload(1, 32, 4)) > 0
    memory.parts[-1][-1] = ABSENT
    with pytest.raises(AssertionError):
        memory.rate(Workload(1, 32, 4))
    memory.close()

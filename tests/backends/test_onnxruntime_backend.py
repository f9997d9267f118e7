"""The backend for stateless graphs, without Triton: types, batches, faults, options, hostile weights."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from backends.onnxruntime.batching import Answer, Call, answer_all
from backends.onnxruntime.errors import GraphError, LoadError
from backends.onnxruntime.graph import Graph
from backends.onnxruntime.options import session_options
from backends.onnxruntime.signature import TYPES, check_config, complete
from tests.backends import onnx_graphs
from tests.backends.triton_double import Config

NUMBERS = sorted(name for name in TYPES if name not in ("tensor(string)", "tensor(bool)"))


class CountingGraph:
    """A Graph that says how often it ran."""

    def __init__(self, path: Path) -> None:
        self.graph, self.runs = Graph(path, {}), 0

    def run(self, feeds: Any, wanted: Any) -> Any:
        self.runs += 1
        return self.graph.run(feeds, wanted)


def value_of(answer: Answer, name: str = "y") -> np.ndarray[Any, Any]:
    assert not isinstance(answer, GraphError), answer
    return answer[name]


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_every_type_come_back_as_they_are(name: str, tmp_path: Path) -> None:
    dtype = np.dtype(TYPES[name][1])
    path = onnx_graphs.same(tmp_path / "m.onnx", helper.np_dtype_to_tensor_dtype(dtype))
    graph = Graph(path, {})
    limits = np.finfo(dtype) if dtype.kind == "f" else np.iinfo(dtype)
    x = np.array([[limits.min, limits.max, 1]], dtype)
    y = graph.run({"x": x}, ["y"])["y"]
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, x)
    assert graph.signature.inputs[0].type == TYPES[name][0]


def test_strings_are_bytes_outside_and_utf8(tmp_path: Path) -> None:
    graph = Graph(onnx_graphs.same(tmp_path / "m.onnx", TensorProto.STRING), {})
    x = np.array([["Größe 🦊".encode(), b""]], np.object_)
    assert graph.run({"x": x}, ["y"])["y"].tolist() == x.tolist()
    with pytest.raises(GraphError, match=r"^invalid: x: not UTF-8"):
        graph.run({"x": np.array([[b"\xff"]], np.object_)}, ["y"])


def test_a_type_that_tritons_python_cannot_pass_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"x is a tensor\(bfloat16\)"):
        Graph(onnx_graphs.same(tmp_path / "m.onnx", TensorProto.BFLOAT16), {})


def test_requests_run_together_and_each_gets_its_own_rows(tmp_path: Path) -> None:
    graph = CountingGraph(onnx_graphs.affine(tmp_path / "m.onnx"))
    rng = np.random.default_rng(0)
    arrays = [rng.random((rows, 5), np.float32) for rows in (1, 3, 2)]
    answers = answer_all(graph, [Call({"x": x}, ("y",)) for x in arrays], batches=True)
    assert graph.runs == 1
    for x, answer in zip(arrays, answers, strict=True):
        np.testing.assert_array_equal(value_of(answer), 2 * x + 1)


def test_rows_of_other_widths_run_apart_and_answers_keep_their_order(tmp_path: Path) -> None:
    graph = CountingGraph(onnx_graphs.affine(tmp_path / "m.onnx"))
    arrays = [np.full((1, width), index, np.float32) for index, width in enumerate((2, 3, 2, 3))]
    answers = answer_all(graph, [Call({"x": x}, ("y",)) for x in arrays], batches=True)
    assert graph.runs == 2
    assert [value_of(answer).tolist() for answer in answers] == [(2 * x + 1).tolist() for x in arrays]


def test_without_a_batch_axis_every_request_runs_alone(tmp_path: Path) -> None:
    graph = CountingGraph(onnx_graphs.whole_mean(tmp_path / "m.onnx"))
    calls = [Call({"x": np.full((2, 2), value, np.float32)}, ("y",)) for value in (1, 5)]
    answers = answer_all(graph, calls, batches=False)
    assert [value_of(answer).tolist() for answer in answers] == [[[1.0]], [[5.0]]]
    assert graph.runs == 2


def test_the_fault_of_one_request_is_its_own(tmp_path: Path) -> None:
    graph = CountingGraph(onnx_graphs.lookup(tmp_path / "m.onnx"))
    calls = [Call({"index": np.array([[index]])}, ("row",)) for index in (1, 9, 3)]
    first, wrong, last = answer_all(graph, calls, batches=True)
    assert value_of(first, "row").tolist() == [[[2.0, 3.0]]]
    assert value_of(last, "row").tolist() == [[[6.0, 7.0]]]
    assert isinstance(wrong, GraphError)
    assert str(wrong).startswith("invalid: graph: ")
    assert "out of data bounds" in str(wrong)


def test_a_graph_that_mixes_rows_does_not_pass_for_one_that_batches(tmp_path: Path) -> None:
    graph = CountingGraph(onnx_graphs.whole_mean(tmp_path / "m.onnx"))
    calls = [Call({"x": np.full((1, 2), value, np.float32)}, ("y",)) for value in (1, 5)]
    answers = answer_all(graph, calls, batches=True)
    assert [value_of(answer).tolist() for answer in answers] == [[[1.0]], [[5.0]]]


def test_a_scalar_travels_as_one_axis(tmp_path: Path) -> None:
    graph = Graph(onnx_graphs.scaled(tmp_path / "m.onnx"), {})
    assert graph.signature.inputs[1].dims(batches=False) == [1]
    y = graph.run({"x": np.ones((1, 2), np.float32), "scale": np.array([3], np.float32)}, ["y"])["y"]
    assert y.tolist() == [[3.0, 3.0]]


class OpenConfig(Config):
    """A configuration that says this much."""

    def __init__(self, **given: Any) -> None:
        super().__init__()
        self.given = {"max_batch_size": 0, "input": [], "output": [], **given}
        self.dynamic = False

    def as_dict(self) -> dict[str, Any]:
        return self.given

    def set_dynamic_batching(self) -> None:
        self.dynamic = True


def test_an_open_configuration_is_filled_in_from_the_graph(tmp_path: Path) -> None:
    signature = Graph(onnx_graphs.lookup(tmp_path / "m.onnx"), {}).signature
    config = complete(OpenConfig(), signature)
    assert (config.max_batch_size, config.dynamic) == (4, True)  # as the native backend does
    assert config.inputs == {"index": {"name": "index", "data_type": "TYPE_INT64", "dims": [-1]}}
    assert config.outputs == {"row": {"name": "row", "data_type": "TYPE_FP32", "dims": [-1, 2]}}
    assert complete(OpenConfig(max_batch_size=7), signature).max_batch_size == 7


def test_a_graph_without_batch_axis_is_completed_without_one(tmp_path: Path) -> None:
    signature = Graph(onnx_graphs.scaled(tmp_path / "m.onnx"), {}).signature
    config = complete(OpenConfig(), signature)
    assert (config.max_batch_size, config.dynamic) == (-1, False)  # untouched
    assert config.inputs["x"]["dims"] == [-1, -1]
    with pytest.raises(LoadError, match="no batch axis; set it to 0"):
        complete(OpenConfig(max_batch_size=8), signature)


def tensor(name: str, kind: str, dims: list[int], **more: Any) -> dict[str, Any]:
    return {"name": name, "data_type": kind, "dims": dims, **more}


X, Y = tensor("x", "TYPE_FP32", [-1]), tensor("y", "TYPE_FP32", [7])


@pytest.mark.parametrize(
    ("inputs", "outputs", "max_batch_size", "sentence"),
    [
        ([X], [Y], 4, None),
        ([X], [], 4, None),  # an output may stay unused
        ([tensor("x", "TYPE_FP32", [-1, -1])], [tensor("y", "TYPE_FP32", [-1, -1])], 0, None),
        ([tensor("x", "TYPE_FP32", [2, 3], reshape={"shape": [6]})], [Y], 4, None),
        ([tensor("z", "TYPE_FP32", [-1])], [Y], 4, "has the input 'z'; the graph has x"),
        ([X], [tensor("z", "TYPE_FP32", [-1])], 4, "has the output 'z'; the graph has y"),
        (
            [tensor("x", "TYPE_INT32", [-1])],
            [Y],
            4,
            "x is TYPE_INT32 in config.pbtxt, TYPE_FP32 in",
        ),
        ([tensor("x", "TYPE_FP32", [2, 3])], [Y], 4, r"x has the dims \[2, 3\] in config.pbtxt, \[-1\]"),
        ([], [Y], 4, "lacks the graph's inputs x"),
    ],
)
def test_a_configuration_must_fit_its_graph(
    inputs: Any, outputs: Any, max_batch_size: int, sentence: str | None, tmp_path: Path
) -> None:
    signature = Graph(onnx_graphs.affine(tmp_path / "m.onnx"), {}).signature
    config = {"max_batch_size": max_batch_size, "input": inputs, "output": outputs}
    if sentence is None:
        check_config(config, signature)
        return
    with pytest.raises(LoadError, match=sentence):
        check_config(config, signature)


def parameters(**values: str) -> dict[str, Any]:
    return {"parameters": {name: {"string_value": value} for name, value in values.items()}}


def accelerated(kind: str, name: str) -> dict[str, Any]:
    accelerators = {f"{kind}_execution_accelerator": [{"name": name}]}
    return {"optimization": {"execution_accelerators": accelerators}}


def test_the_native_backends_parameters_are_honoured() -> None:
    options = session_options(
        parameters(
            intra_op_thread_count="3", inter_op_thread_count="2", execution_mode="1", enable_mem_arena="0"
        )
        | {"optimization": {"graph": {"level": -1}}}
    )
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 2)
    assert options.execution_mode == ort.ExecutionMode.ORT_PARALLEL
    assert options.enable_cpu_mem_arena is False
    assert options.enable_mem_pattern is True
    assert options.graph_optimization_level == ort.GraphOptimizationLevel.ORT_ENABLE_BASIC


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (parameters(intra_op_thread_count="many"), "'many'; a number of threads is needed"),
        (parameters(execution_mode="2"), "execution_mode is '2'; allowed are 0, 1"),
        (parameters(gpu_mem_limit="1"), "gpu_mem_limit is for a GPU"),
        (parameters(threads="1"), "unknown parameter 'threads'; known are intra_op_thread_count"),
        ({"optimization": {"graph": {"level": 3}}}, "level is 3; allowed are 0, -1, 1, 2"),
        (
            {
                "optimization": {
                    "execution_accelerators": {"gpu_execution_accelerator": [{"name": "tensorrt"}]}
                }
            },
            "gpu_execution_accelerator asks for tensorrt",
        ),
        (
            {
                "optimization": {
                    "execution_accelerators": {"cpu_execution_accelerator": [{"name": "openvino"}]}
                }
            },
            "cpu_execution_accelerator asks for openvino",
        ),
        ({"sequence_batching": {"state": []}}, "sequence_batching keeps state"),
        ({"model_operations": {"op_library_filename": ["evil.so"]}}, "code of its own"),
        ({"instance_group": [{"kind": "KIND_GPU"}]}, "KIND_GPU; the embedded server has none"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(config: Any, sentence: str) -> None:
    with pytest.raises(LoadError, match=sentence):
        session_options(config)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A model directory with a weight file, beside it a secret, and links between them."""
    directory = tmp_path / "model"
    (directory / "sub").mkdir(parents=True)
    np.arange(4, dtype=np.float32).tofile(directory / "w.bin")
    np.arange(4, dtype=np.float32).tofile(directory / "sub" / "w.bin")
    np.ones(4, np.float32).tofile(tmp_path / "secret.bin")
    (directory / "link.bin").symlink_to("../secret.bin")
    (directory / "up").symlink_to("..")
    return directory


@pytest.mark.parametrize("in_node", [False, True])
@pytest.mark.parametrize(
    ("location", "entries"),
    [
        ("../secret.bin", {}),
        ("{root}/secret.bin", {}),
        ("sub/../../secret.bin", {}),
        ("link.bin", {}),
        ("up/secret.bin", {}),
        ("gone.bin", {}),
        ("/dev/zero", {}),
        ("*/_ORT_MEM_ADDR_/*", {"offset": 4096}),
        ("w.bin", {"offset": 8}),
        ("w.bin", {"offset": -4}),
        ("w.bin", {"length": 1 << 40}),
    ],
)
def test_weights_outside_the_model_or_of_a_false_size_are_refused(
    location: str, entries: dict[str, int], in_node: bool, weights: Path
) -> None:
    given = location.format(root=weights.parent)
    path = onnx_graphs.with_external(weights / "model.onnx", given, in_node=in_node, **entries)
    with pytest.raises(LoadError, match=r"^model.onnx can't be loaded"):
        Graph(path, {})


@pytest.mark.parametrize("location", ["w.bin", "sub/w.bin"])
def test_weights_beside_the_graph_are_read(location: str, weights: Path) -> None:
    graph = Graph(onnx_graphs.with_external(weights / "model.onnx", location), {})
    assert graph.run({"x": np.zeros((1, 4), np.float32)}, ["y"])["y"].tolist() == [[0, 1, 2, 3]]


def test_a_file_that_is_no_graph_and_a_missing_one_are_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(LoadError, match="can't be loaded"):
        Graph(tmp_path / "model.onnx", {})
    with pytest.raises(LoadError, match=r"other\.onnx is missing"):
        Graph(tmp_path / "other.onnx", {})

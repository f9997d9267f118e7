"""An engine whose every step fails for one token, to see what becomes of an engine that died."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from export.triton_config import ENGINE_PARAMETERS, engine_config
from tests.backends.prompt_model import chat_tokenizer

SICK = "sick_engine"
VOCAB_SIZE, ROWS = 512, 8
SICKENING = 9  # beyond the table's rows


def write_sick_model(repository: Path) -> None:
    """Token t < ROWS is followed by t + 3, modulo ROWS; any other token is a failing look-up."""
    version = repository / SICK / "1"
    version.mkdir(parents=True)
    onnx.save(look_up_graph(), version / "model.onnx")
    chat_tokenizer().save(str(version / "tokenizer.json"))
    (version / "manifest.json").write_text(json.dumps(manifest()))
    (repository / SICK / "config.pbtxt").write_text(engine_config("sick", ENGINE_PARAMETERS))


def look_up_graph() -> onnx.ModelProto:
    following = np.roll(np.arange(ROWS), -3)
    table = numpy_helper.from_array(np.eye(ROWS, VOCAB_SIZE, dtype=np.float32)[following], "table")
    axis = numpy_helper.from_array(np.array([1]), "axis")
    nodes = [
        helper.make_node("ReduceMax", ["input_ids", "axis"], ["token"], keepdims=1),
        helper.make_node("Shape", ["logits_at"], ["places"]),
        helper.make_node("Expand", ["token", "places"], ["tokens"]),
        helper.make_node("Gather", ["table", "tokens"], ["logits"]),
    ]
    shapes = {"input_ids": ["B", "T"], "positions": ["B", "T"], "lengths": ["B"], "logits_at": ["B", "K"]}
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, dims) for name, dims in shapes.items()]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["B", "K", VOCAB_SIZE])]
    graph = helper.make_graph(nodes, "look_up", inputs, outputs, [table, axis])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def manifest() -> dict[str, object]:
    return {
        "format": "trident-engine/2",
        "model": "sick",
        "engine": "onnxruntime",
        "precision": "fp32",
        "graph": "model.onnx",
        "source": {"file": "none", "format": "hand-made", "sha256": "0" * 64},
        "stamps": {"onnxruntime": onnxruntime.__version__},
        "vocab_size": VOCAB_SIZE,
        "max_length": 64,
        "states": [],
        "special_tokens": {"bos": None, "eos": [2], "pad": None},
        "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
        "extra_outputs": [],
    }

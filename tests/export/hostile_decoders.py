"""Folders of onnxruntime-genai that must be refused: graphs that do not add up, words that lead elsewhere."""

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from tests.export.decoder_graphs import tiny_llama, write_shared
from tests.export.hostile_inputs import Hostile

Damage = Callable[[Path], None]
GRAPH, CONFIG = "decoder.onnx", "genai_config.json"


def config(**changes: Any) -> Damage:
    """Change keys of genai_config.json, a dotted path each; None removes one."""

    def damage(directory: Path) -> None:
        values = json.loads((directory / CONFIG).read_text())
        for path, value in changes.items():
            *way, last = path.split("__")
            section = values
            for name in way:
                section = section[name]
            section.pop(last) if value is None else section.update({last: value})
        (directory / CONFIG).write_text(json.dumps(values))

    return damage


def text(content: str) -> Damage:
    def damage(directory: Path) -> None:
        (directory / CONFIG).write_text(content)

    return damage


def graph(change: Callable[[onnx.ModelProto], None]) -> Damage:
    """Change the graph; its weights stay in their file."""

    def damage(directory: Path) -> None:
        model = onnx.load(directory / GRAPH, load_external_data=False)
        change(model)
        (directory / GRAPH).write_bytes(model.SerializeToString())

    return damage


def port(model: onnx.ModelProto, name: str) -> ValueInfoProto:
    return next(value for value in (*model.graph.input, *model.graph.output) if value.name == name)


def sized(name: str, axis: int, size: int) -> Damage:
    """Declare the size of one axis."""

    def change(model: onnx.ModelProto) -> None:
        port(model, name).type.tensor_type.shape.dim[axis].dim_value = size

    return graph(change)


def typed(name: str, dtype: int) -> Damage:
    def change(model: onnx.ModelProto) -> None:
        port(model, name).type.tensor_type.elem_type = dtype

    return graph(change)


def without(*names: str) -> Damage:
    """Drop inputs and outputs."""

    def change(model: onnx.ModelProto) -> None:
        for ports in (model.graph.input, model.graph.output):
            kept = [value for value in ports if value.name not in names]
            del ports[:]
            ports.extend(kept)

    return graph(change)


def taking(name: str, dtype: int = TensorProto.FLOAT) -> Damage:
    return graph(
        lambda model: model.graph.input.append(helper.make_tensor_value_info(name, dtype, ["B", "N"]))
    )


def giving(name: str) -> Damage:
    return graph(
        lambda model: model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))
    )


def flat(model: onnx.ModelProto) -> None:
    del port(model, "past_key_values.0.key").type.tensor_type.shape.dim[1:]


def old(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 11


def through(kind: str, constant: float) -> Damage:
    """Spoil the logits by one more operator."""

    def change(model: onnx.ModelProto) -> None:
        model.graph.node[-1].output[0] = "sound"
        weight = numpy_helper.from_array(np.array(constant, np.float32), "spoiler")
        model.graph.initializer.append(weight)
        model.graph.node.append(helper.make_node(kind, ["sound", "spoiler"], ["logits"]))

    return graph(change)


def forgetful(model: onnx.ModelProto) -> None:
    """Counts all tokens as new: it says right things of a prompt, and wrong ones after it."""
    shape = helper.make_node("Shape", ["input_ids"], ["shape"])
    ones = helper.make_node(
        "ConstantOfShape", ["shape"], ["all"], value=numpy_helper.from_array(np.ones(1, np.int64))
    )
    for node in model.graph.node:
        for index, name in enumerate(node.input):
            if name == "attention_mask":
                node.input[index] = "all"
    for index, node in enumerate((shape, ones)):
        model.graph.node.insert(index, node)


def crowd(model: onnx.ModelProto) -> None:
    """Rows see each other: the largest of every logit is told."""
    model.graph.node[-1].output[0] = "own"
    model.graph.node.append(helper.make_node("ReduceMax", ["own"], ["most"], axes=[0], keepdims=1))
    model.graph.node.append(helper.make_node("Sub", ["own", "most"], ["less"]))
    model.graph.node.append(helper.make_node("Add", ["own", "less"], ["logits"]))


def cut(directory: Path) -> None:
    path = directory / "decoder.onnx.data"
    path.write_bytes(path.read_bytes()[:1000])


def cut_graph(directory: Path) -> None:
    (directory / GRAPH).write_bytes((directory / GRAPH).read_bytes()[:1000])


def bytes_for_names(directory: Path) -> None:
    path = directory / "decoder.onnx"
    path.write_bytes(path.read_bytes().replace(KEY.encode(), b"\xff" * len(KEY)))


def linked(directory: Path) -> None:
    path = directory / "decoder.onnx.data"
    path.rename(directory.parent / "secret.bin")
    path.symlink_to("../secret.bin")


MODEL, DECODER = "model__", "model__decoder__"
KEY = "past_key_values.0.key"

DECODERS: dict[str, tuple[Damage, str]] = {
    "no json": (text("{"), "genai_config.json is not JSON"),
    "a list": (text("[]"), "holds a JSON list"),
    "nothing": (text("{}"), "has no filename"),
    "no decoder": (config(model__decoder=None), "decoder has no filename|has no filename"),
    "filename above": (config(**{DECODER + "filename": "../decoder.onnx"}), "the graph must lie beside it"),
    "filename elsewhere": (config(**{DECODER + "filename": "/etc/passwd"}), "the graph must lie beside it"),
    "filename of a number": (config(**{DECODER + "filename": 7}), "filename is '7'; a string is needed"),
    "graph gone": (config(**{DECODER + "filename": "gone.onnx"}), "is missing, though genai_config"),
    "no context": (config(**{MODEL + "context_length": None}), "has no context_length"),
    "negative context": (config(**{MODEL + "context_length": -1}), "context_length is -1; allowed are 1 to"),
    "endless context": (config(**{MODEL + "context_length": 1 << 40}), "context_length is 1099511627776"),
    "short context": (config(**{MODEL + "context_length": 64}), "64 tokens is too short to compare"),
    "an end beyond the words": (config(**{MODEL + "eos_token_id": 300}), "eos_token_id 300 is no token"),
    "an end in words": (config(**{MODEL + "eos_token_id": ["</s>"]}), "'</s>', which is no token"),
    "a beginning in parts": (config(**{MODEL + "bos_token_id": 1.5}), "bos_token_id is '1.5'"),
    "vision": (config(**{MODEL + "vision": {"filename": "v.onnx"}}), "names a vision model"),
    "encoder": (config(**{MODEL + "encoder": {"filename": "e.onnx"}}), "names an encoder"),
    "pipeline": (config(**{DECODER + "pipeline": [{}]}), "is a pipeline of several graphs"),
    "window": (config(**{DECODER + "sliding_window": {"window_size": 128}}), "slides its cache along"),
    "names without a layer": (
        config(**{DECODER + "inputs__past_key_names": "past"}),
        "past_key_names is 'past'; a name with %d",
    ),
    "names of one kind": (
        config(**{DECODER + "inputs__past_key_names": "past_key_values.%d.value"}),
        "can't be served|is damaged|can't be run",
    ),
    "names of nothing": (
        config(**{DECODER + "inputs__past_key_names": "a.%d", DECODER + "inputs__past_value_names": "b.%d"}),
        "it takes no a.%d, but input_ids, attention_mask",
    ),
    "half a head": (config(**{DECODER + "head_size": None}), "does not tell how many heads of what size"),
    "a wrong head": (config(**{DECODER + "head_size": 32}), "can't be run as a decoder"),
    "past without present": (without("present.0.key"), "it gives no present.0.key, but logits"),
    "present without past": (without("past_key_values.1.value"), "it takes no past_key_values.1.value"),
    "a present more": (giving("present.2.key"), "it gives present.2.key, but takes no such past"),
    "no logits": (without("logits"), "it gives no logits, but present.0.key"),
    "no tokens": (without("input_ids"), "it takes no input_ids, but attention_mask"),
    "integer caches": (typed(KEY, TensorProto.INT8), "key is int8; float32 or float16 is served"),
    "bfloat16 caches": (typed(KEY, TensorProto.BFLOAT16), "key is bfloat16; float32 or float16"),
    "caches of no type": (typed(KEY, 99), "key is of the unknown type 99; float32"),
    "unlike present": (typed("present.0.key", TensorProto.FLOAT16), "present.0.key is float16; float32 is"),
    "tokens of text": (typed("input_ids", TensorProto.STRING), "input_ids is string; int64 or int32"),
    "flat caches": (graph(flat), r"key is shaped \[None\]; \[batch, heads, past tokens, head size\]"),
    "negative heads": (sized(KEY, 1, -2), r"key is shaped \[None, -2"),
    "no heads": (sized(KEY, 1, 0), r"key is shaped \[None, 0"),
    "other heads": (sized(KEY, 1, 5), "can't be run as a decoder"),
    "fixed past": (sized(KEY, 2, 64), "key is for past tokens = 64 only"),
    "fixed batch": (sized("input_ids", 0, 1), "input_ids is for batch = 1 only"),
    "fixed tokens": (sized("input_ids", 1, 1), "input_ids is for tokens = 1 only"),
    "some logits": (sized("logits", 1, 3), "logits are those of 3 tokens"),
    "fewer words": (sized("logits", 2, 10), "the model to 9"),
    "old": (graph(old), "written in opset 11; 13 and later"),
    "encoder-decoder": (taking("encoder_hidden_states"), "decoder of an encoder-decoder, for it takes"),
    "multimodal": (taking("inputs_embeds"), "part of a multimodal model, for it takes inputs_embeds"),
    "beams": (taking("beam_idx", TensorProto.INT32), "it searches with beams, for it takes beam_idx"),
    "a recurrence": (taking("past_conv.0"), "carries a recurrent state, for it takes past_conv.0"),
    "something else": (taking("whatever"), "it takes whatever, too"),
    "not a number": (through("Mul", np.nan), "its logits are no finite numbers"),
    "infinite": (through("Div", 0.0), "its logits are no finite numbers"),
    "forgetful": (
        graph(forgetful),
        "differs from ONNX Runtime without optimisations by more than is allowed",
    ),
    "a crowd": (graph(crowd), "differs from ONNX Runtime without optimisations .*ragged batch"),
    "cut weights": (cut, "can't be run as a decoder"),
    "cut graph": (cut_graph, "decoder.onnx is no whole ONNX model"),
    "bytes for names": (bytes_for_names, "decoder.onnx has names that are not UTF-8"),
    "linked weights": (linked, "is a link out of the graph's directory"),
}


def sound() -> Hostile:
    """The folder that `make fuzz` damages."""
    with tempfile.TemporaryDirectory() as name:
        directory = write_shared(Path(name), tiny_llama())
        files = {path.name: path.read_bytes() for path in directory.iterdir()}
        return Hostile("sound", files)

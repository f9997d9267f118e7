"""Tiny deterministic language models, node by node: no torch and no exporter in the engine's tests."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

VOCAB_SIZE = 320
MAX_LENGTH = 96
EOS = 0
LARGEST_FIGURE = 100.0
WIDTH, HEADS, KV_HEADS, HEAD_SIZE = 64, 4, 2, 16
CORPUS = (
    "the cat sat on the mat and the dog ran to the cat, then they ate. "
    "größer als süß, naïve café; 日本語の文章と中文的句子。 👩‍👩‍👧‍👦 👍🏽 🙂🙂 family and thumbs up"
)


def tiny_tokenizer() -> Tokenizer:
    """A byte-level BPE of VOCAB_SIZE tokens, some of which hold half a character."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        min_frequency=1,
        special_tokens=["<|end|>", "<|start|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([CORPUS], trainer)
    return tokenizer


def write_model(
    directory: Path, mixers: tuple[str, ...], *, figures: tuple[str, ...] = (), **changes: object
) -> Path:
    """Write a version directory (graph, manifest, tokenizer) whose layers are `mixers`, in order.

    `figures` are extra outputs, numbers between 0 and LARGEST_FIGURE that follow from the last token's state.
    """
    directory.mkdir(parents=True, exist_ok=True)
    graph = _TinyGraph()
    onnx.save(graph.build(mixers, figures), directory / "model.onnx")
    manifest = manifest_data(graph.states) | {"extra_outputs": list(figures)} | changes
    (directory / "manifest.json").write_text(json.dumps(manifest))
    tiny_tokenizer().save(str(directory / "tokenizer.json"))
    return directory


def manifest_data(states: list[dict[str, object]]) -> dict[str, Any]:
    return {
        "format": "trident-engine/2",
        "model": "tiny",
        "engine": "onnxruntime",
        "precision": "fp32",
        "graph": "model.onnx",
        "source": {"file": "none", "format": "hand-made", "sha256": "0" * 64},
        "stamps": {"trident": "0.1.0", "opset": 24, "onnxruntime": onnxruntime.__version__},
        "vocab_size": VOCAB_SIZE,
        "max_length": MAX_LENGTH,
        "states": states,
        "special_tokens": {"bos": 1, "eos": [EOS], "pad": None},
        "sampling": {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0},
        "extra_outputs": [],
    }


class _TinyGraph:
    """Embedding → residual mixers → head at the tokens asked for, with random weights of a fixed seed."""

    def __init__(self) -> None:
        self._random = np.random.default_rng(20240607)
        self._nodes: list[onnx.NodeProto] = []
        self._weights: dict[str, NDArray[Any]] = {}
        self._inputs = [_value(name, ["B", "T"]) for name in ("input_ids", "positions")] + [
            _value("lengths", ["B"]),
            _value("logits_at", ["B", "K"]),
        ]
        self._outputs = [_value("logits", ["B", "K", VOCAB_SIZE], TensorProto.FLOAT)]
        self.states: list[dict[str, object]] = []

    def build(self, mixers: tuple[str, ...], figures: tuple[str, ...]) -> onnx.ModelProto:
        self._token_counts()
        stream = self._node("Gather", self._weight("embedding", VOCAB_SIZE, WIDTH, scale=1.0), "input_ids")
        for index, mixer in enumerate(mixers):
            normal = self._node("RMSNormalization", stream, self._constant(np.ones(WIDTH, np.float32)))
            mixed = self._mixed(mixer, index, normal)
            stream = self._node("Add", stream, mixed)
        places = self._node("Unsqueeze", "logits_at", self._constant(np.array([2], np.int64)))  # [B, K, 1]
        asked = self._node("GatherND", stream, places, batch_dims=1)  # [B, K, WIDTH]
        normal = self._node("RMSNormalization", asked, self._constant(np.ones(WIDTH, np.float32)))
        self._node("MatMul", normal, self._weight("head", WIDTH, VOCAB_SIZE, scale=0.4), output="logits")
        for name in figures:
            self._figure(name, normal)
        weights = [numpy_helper.from_array(array, name) for name, array in self._weights.items()]
        graph = helper.make_graph(self._nodes, "tiny", self._inputs, self._outputs, weights)
        opsets = [helper.make_opsetid("", 24), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=11)

    def _figure(self, name: str, x: str) -> None:
        """One number per place asked for, [B, K]."""
        told = self._node(
            "Sigmoid", self._node("MatMul", x, self._weight(name + ".weight", WIDTH, 1, scale=0.2))
        )
        flat = self._node("Squeeze", told, self._constant(np.array([2], np.int64)))
        self._node("Mul", flat, self._constant(np.array(LARGEST_FIGURE, np.float32)), output=name)
        self._outputs.append(_value(name, ["B", "K"], TensorProto.FLOAT))

    def _token_counts(self) -> None:
        """Shared by all layers: tokens before the last valid one, the longest total."""
        one = self._constant(np.array([1], np.int64))
        last = self._node("Sub", "lengths", one)  # [B]
        first = self._node("Gather", "positions", self._constant(np.array(0, np.int64)), axis=1)  # [B]
        before = self._node("Add", first, last)
        self._seqlens = self._node("Cast", before, to=TensorProto.INT32)
        longest = self._node("ReduceMax", self._node("Add", before, one), keepdims=0)
        self._total = self._node("Cast", longest, to=TensorProto.INT32)

    def _mixed(self, mixer: str, index: int, x: str) -> str:
        if mixer == "retention":
            return self._retention(index, x)
        return self._attention(index, x, rotates=mixer == "attention")

    def _attention(self, index: int, x: str, *, rotates: bool) -> str:
        """Without rotation the order of the tokens before the last one can't be told, in a first layer."""
        q = self._project(x, f"{index}.q", HEADS * HEAD_SIZE)
        k, v = (self._project(x, f"{index}.{name}", KV_HEADS * HEAD_SIZE) for name in "kv")
        shape = [KV_HEADS, MAX_LENGTH, HEAD_SIZE]
        pasts, presents = zip(
            *(self._state(f"{index:02}.{name}", "kv", shape) for name in ("key", "value")), strict=True
        )
        angles = np.arange(MAX_LENGTH)[:, None] * 100.0 ** (-np.arange(HEAD_SIZE // 2) / (HEAD_SIZE // 2))
        cos, sin = (self._constant(f(angles).astype(np.float32)) for f in (np.cos, np.sin))
        inputs = [q, k, v, *pasts, self._seqlens, self._total, *([cos, sin] if rotates else [])]
        output = f"{index}.mixed"
        options = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "do_rotary": int(rotates)}
        self._contrib("GroupQueryAttention", inputs, [output, *presents], options)
        return self._project(output, f"{index}.o", WIDTH)

    def _retention(self, index: int, x: str) -> str:
        q, k, v = (self._project(x, f"{index}.{name}", HEADS * HEAD_SIZE) for name in "qkv")
        past, present = self._state(f"{index:02}.retention", "recurrent", [HEADS, HEAD_SIZE, HEAD_SIZE])
        gammas = self._constant(np.log([0.9, 0.95, 0.98, 0.99]).astype(np.float32))  # [HEADS]
        shape = self._node(
            "Concat", self._node("Shape", "input_ids"), self._constant(np.array([HEADS])), axis=0
        )
        decay = self._node("Expand", gammas, shape)  # [B, T, HEADS]
        output = f"{index}.mixed"
        options = {"q_num_heads": HEADS, "kv_num_heads": HEADS, "update_rule": "gated", "scale": 0.25}
        self._contrib("LinearAttention", [q, k, v, past, decay], [output, present], options)
        return self._project(output, f"{index}.o", WIDTH)

    def _state(self, name: str, kind: str, shape: list[int]) -> tuple[str, str]:
        past, present = f"past.{name}", f"present.{name}"
        self.states.append(
            {"kind": kind, "past": past, "present": present, "shape": shape, "dtype": "float32"}
        )
        self._inputs.append(_value(past, ["B", *shape], TensorProto.FLOAT))
        self._outputs.append(_value(present, ["B", *shape], TensorProto.FLOAT))
        return past, present

    def _project(self, x: str, name: str, size: int) -> str:
        rows = HEADS * HEAD_SIZE
        return self._node("MatMul", x, self._weight(name, rows, size, scale=rows**-0.5))

    def _weight(self, name: str, rows: int, columns: int, *, scale: float) -> str:
        values = self._random.standard_normal((rows, columns)) * scale
        return self._constant(values.astype(np.float32), name)

    def _constant(self, array: NDArray[Any], name: str = "") -> str:
        name = name or f"constant.{len(self._weights)}"
        self._weights[name] = array
        return name

    def _node(self, kind: str, *inputs: str, output: str = "", **options: object) -> str:
        output = output or f"{kind}.{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], **options))
        return output

    def _contrib(
        self, kind: str, inputs: list[str], outputs: list[str], options: Mapping[str, object]
    ) -> None:
        self._nodes.append(helper.make_node(kind, inputs, outputs, domain="com.microsoft", **options))


def _value(name: str, shape: list[Any], kind: int = TensorProto.INT64) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)

"""Decoders as other tools export them, node by node from a llama of transformers."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from transformers import PreTrainedModel

from tests.export.hf_models import LLAMA, Case, write_tokenizer

FLOAT, HALF, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
OPSET = 17
MAX_LENGTH = int(LLAMA["max_position_embeddings"])

Layout = Literal["joined", "shared"]


def tiny_llama() -> PreTrainedModel:
    """The model whose weights the graphs have: grouped heads, random weights."""
    return Case("llama", "grouped").make()


@dataclass(frozen=True)
class Make:
    """How a graph is made: `branch` takes the flag of merged decoders, `keeps` a number of logits to give.

    `last` gives logits at the last token only; `half` keeps its caches in float16.
    """

    layout: Layout = "joined"
    branch: bool = False
    keeps: bool = False
    last: bool = False
    half: bool = False


def write_joined(directory: Path, model: PreTrainedModel, make: Make | None = None) -> Path:
    """A directory as optimum writes it for transformers.js: the graph in `onnx`, everything else above."""
    write_files(directory)
    return save(directory / "onnx" / "model.onnx", build(model, make or Make())).parent.parent


def write_shared(directory: Path, model: PreTrainedModel, **changes: Any) -> Path:
    """A folder of onnxruntime-genai, its weights in a file of their own."""
    write_files(directory)
    (directory / "config.json").unlink()
    save(directory / "decoder.onnx", build(model, Make("shared")), weights="decoder.onnx.data")
    (directory / "genai_config.json").write_text(json.dumps(genai_config() | changes))
    return directory


def write_files(directory: Path) -> None:
    """Configuration and tokenizer, but no graph."""
    directory.mkdir(parents=True, exist_ok=True)
    write_tokenizer(directory)
    (directory / "config.json").write_text(json.dumps({"model_type": "llama", **LLAMA}))


def save(path: Path, graph: onnx.ModelProto, weights: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(graph, path, save_as_external_data=bool(weights), location=weights or None, size_threshold=64)
    return path


def genai_config() -> dict[str, Any]:
    """As the model builder of onnxruntime-genai writes it."""
    names = {
        "inputs": {
            "input_ids": "input_ids",
            "attention_mask": "attention_mask",
            "past_key_names": "past_key_values.%d.key",
            "past_value_names": "past_key_values.%d.value",
        },
        "outputs": {
            "logits": "logits",
            "present_key_names": "present.%d.key",
            "present_value_names": "present.%d.value",
        },
    }
    decoder = {
        "session_options": {"log_id": "onnxruntime-genai", "provider_options": []},
        "filename": "decoder.onnx",
        "head_size": LLAMA["head_dim"],
        "num_key_value_heads": LLAMA["num_key_value_heads"],
        "num_hidden_layers": LLAMA["num_hidden_layers"],
        **names,
    }
    model = {
        "type": "llama",
        "context_length": MAX_LENGTH,
        "vocab_size": LLAMA["vocab_size"],
        "bos_token_id": 1,
        "eos_token_id": [2, 7],
        "pad_token_id": 0,
        "decoder": decoder,
    }
    return {"model": model, "search": {"max_length": MAX_LENGTH, "past_present_share_buffer": True}}


def build(model: PreTrainedModel, make: Make) -> onnx.ModelProto:
    """The graph of `model`."""
    return _Builder(model, make).build()


@dataclass
class _Builder:
    model: PreTrainedModel
    make: Make
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)

    def build(self) -> onnx.ModelProto:
        config, own = self.model.config, self.model.state_dict()
        self.H, self.K, self.D = config.num_attention_heads, config.num_key_value_heads, config.head_dim
        self.tensors = {name: tensor.numpy() for name, tensor in own.items()}
        self.eps = self.constant(np.array(config.rms_norm_eps, np.float32))
        self.ports(config.vocab_size)
        self.shared = self.make.layout == "shared"
        self.prepare(config.rope_parameters["rope_theta"])
        x = self.node("Gather", self.tensor("model.embed_tokens.weight"), "input_ids")
        for layer in range(config.num_hidden_layers):
            x = self.layer(x, layer)
        x = self.norm(x, "model.norm.weight")
        if self.make.last:
            last = [self.constant(np.array([number])) for number in (-1, np.iinfo(np.int64).max, 1)]
            x = self.node("Slice", x, *last)
        if self.make.keeps:
            minus = self.node("Neg", "num_logits_to_keep")
            ends = [minus, self.constant(np.array(np.iinfo(np.int64).max)), self.constant(np.array(1))]
            x = self.node("Slice", x, *(self.node("Reshape", end, self.row(1)) for end in ends))
        self.node("MatMul", x, self.transposed("lm_head.weight"), output="logits")
        graph = helper.make_graph(
            self.nodes,
            "decoder",
            self.inputs,
            self.outputs,
            [numpy_helper.from_array(array, name) for name, array in self.weights.items()],
        )
        opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid("com.microsoft", 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=8, producer_name="tests")

    def ports(self, vocab_size: int) -> None:
        self.take("input_ids", INT64, ["batch_size", "sequence_length"])
        self.take("attention_mask", INT64, ["batch_size", "total_sequence_length"])
        if self.make.layout == "joined":
            self.take("position_ids", INT64, ["batch_size", "sequence_length"])
        if self.make.branch:
            self.take("use_cache_branch", BOOL, [1])
        if self.make.keeps:
            self.take("num_logits_to_keep", INT64, [])
        count: str | int = 1 if self.make.last else "kept" if self.make.keeps else "sequence_length"
        self.outputs.append(helper.make_tensor_value_info("logits", FLOAT, ["batch_size", count, vocab_size]))

    def prepare(self, theta: float) -> None:
        """What all layers share: the tables of the rotation, who may look at whom."""
        angles = np.arange(MAX_LENGTH)[:, None] * theta ** (-np.arange(0, self.D, 2) / self.D)
        cos, sin = (self.constant(table(angles).astype(np.float32)) for table in (np.cos, np.sin))
        if self.shared:
            self.rotation = (cos, sin)
            filled = self.node("ReduceSum", "attention_mask", self.row(1), keepdims=0)
            before = self.node("Sub", filled, self.row(1))
            width = self.node("Gather", self.node("Shape", "attention_mask"), self.constant(np.array(1)))
            self.lengths = tuple(self.node("Cast", each, to=TensorProto.INT32) for each in (before, width))
            return
        tables = (self.node("Gather", table, "position_ids") for table in (cos, sin))
        self.rotation = tuple(self.node("Unsqueeze", table, self.row(1)) for table in tables)
        zero, one = (self.constant(np.array(number)) for number in (0, 1))
        width = self.node("Gather", self.node("Shape", "attention_mask"), one)
        past = self.node("Sub", width, self.node("Gather", self.node("Shape", "input_ids"), one))
        rows = self.node("Unsqueeze", self.node("Range", past, width, one), self.row(1))
        causal = self.node("LessOrEqual", self.node("Range", zero, width, one), rows)
        seen = self.node("Cast", "attention_mask", to=BOOL)
        seen = self.node("And", self.node("Unsqueeze", seen, self.constant(np.array([1, 2]))), causal)
        numbers = (self.constant(np.array(number, np.float32)) for number in (0, np.finfo(np.float32).min))
        self.bias = self.node("Where", seen, *numbers)

    def layer(self, x: str, layer: int) -> str:
        prefix = f"model.layers.{layer}"
        normed = self.norm(x, f"{prefix}.input_layernorm.weight")
        q, k, v = (self.project(normed, f"{prefix}.self_attn.{name}_proj.weight") for name in "qkv")
        attend = self.attend_shared if self.shared else self.attend_joined
        x = self.node("Add", x, self.project(attend(q, k, v, layer), f"{prefix}.self_attn.o_proj.weight"))
        normed = self.norm(x, f"{prefix}.post_attention_layernorm.weight")
        gate, up = (self.project(normed, f"{prefix}.mlp.{name}_proj.weight") for name in ("gate", "up"))
        gated = self.node("Mul", self.node("Mul", gate, self.node("Sigmoid", gate)), up)
        return self.node("Add", x, self.project(gated, f"{prefix}.mlp.down_proj.weight"))

    def attend_shared(self, q: str, k: str, v: str, layer: int) -> str:
        pairs = [self.cache(layer, kind) for kind in ("key", "value")]
        pasts, presents = zip(*pairs, strict=True)
        output = f"attention.{layer}"
        options = {"num_heads": self.H, "kv_num_heads": self.K, "do_rotary": 1}
        inputs = [q, k, v, *pasts, *self.lengths, *self.rotation]
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention", inputs, [output, *presents], domain="com.microsoft", **options
            )
        )
        return output

    def attend_joined(self, q: str, k: str, v: str, layer: int) -> str:
        query, key = self.rotate(self.heads(q, self.H)), self.rotate(self.heads(k, self.K))
        key = self.join(key, layer, "key")
        value = self.join(self.heads(v, self.K), layer, "value")
        groups = self.constant(np.repeat(np.arange(self.K), self.H // self.K))
        key, value = (self.node("Gather", each, groups, axis=1) for each in (key, value))
        scores = self.node("MatMul", query, self.node("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self.node("Mul", scores, self.constant(np.array(self.D**-0.5, np.float32)))
        weights = self.node("Softmax", self.node("Add", scores, self.bias), axis=-1)
        mixed = self.node("Transpose", self.node("MatMul", weights, value), perm=[0, 2, 1, 3])
        return self.node("Reshape", mixed, self.constant(np.array([0, 0, self.H * self.D])))

    def join(self, new: str, layer: int, kind: str) -> str:
        """The past with the new tokens behind it; a merged decoder's first branch has no past."""
        past, present = self.cache(layer, kind)
        if self.make.half:
            new = self.node("Cast", new, to=HALF)
        if self.make.branch:
            branches = {
                "then_branch": helper.make_node("Concat", [past, new], [f"then.{present}"], axis=2),
                "else_branch": helper.make_node("Identity", [new], [f"else.{present}"]),
            }
            graphs = {
                name: helper.make_graph(
                    [node], name, [], [helper.make_tensor_value_info(node.output[0], FLOAT, None)]
                )
                for name, node in branches.items()
            }
            self.node("If", "use_cache_branch", output=present, **graphs)
        else:
            self.node("Concat", past, new, axis=2, output=present)
        return self.node("Cast", present, to=FLOAT) if self.make.half else present

    def cache(self, layer: int, kind: str) -> tuple[str, str]:
        past, present = f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}"
        dtype = HALF if self.make.half else FLOAT
        # The builder of onnxruntime-genai leaves the head's size to its configuration.
        width = "kv_cache_dim" if self.shared else self.D
        self.take(past, dtype, ["batch_size", self.K, "past_sequence_length", width])
        shape = ["batch_size", self.K, "total_sequence_length", width]
        self.outputs.append(helper.make_tensor_value_info(present, dtype, shape))
        return past, present

    def heads(self, x: str, count: int) -> str:
        split = self.node("Reshape", x, self.constant(np.array([0, 0, count, self.D])))
        return self.node("Transpose", split, perm=[0, 2, 1, 3])

    def rotate(self, x: str) -> str:
        cos, sin = self.rotation
        middle, end = self.row(self.D // 2), self.row(self.D)
        first = self.node("Slice", x, self.row(0), middle, self.row(3))
        second = self.node("Slice", x, middle, end, self.row(3))
        parts = (("Sub", first, cos, second, sin), ("Add", second, cos, first, sin))
        turned = [
            self.node(kind, self.node("Mul", a, b), self.node("Mul", c, d)) for kind, a, b, c, d in parts
        ]
        return self.node("Concat", *turned, axis=-1)

    def norm(self, x: str, name: str) -> str:
        mean = self.node("ReduceMean", self.node("Mul", x, x), axes=[-1])
        return self.node(
            "Mul", self.node("Div", x, self.node("Sqrt", self.node("Add", mean, self.eps))), self.tensor(name)
        )

    def project(self, x: str, name: str) -> str:
        return self.node("MatMul", x, self.transposed(name))

    def transposed(self, name: str) -> str:
        self.weights[name] = np.ascontiguousarray(self.tensors[name].T)
        return name

    def tensor(self, name: str) -> str:
        self.weights[name] = self.tensors[name]
        return name

    def row(self, number: int) -> str:
        return self.constant(np.array([number]))

    def constant(self, array: NDArray[Any]) -> str:
        name = f"constant.{len(self.weights)}"
        self.weights[name] = array
        return name

    def take(self, name: str, dtype: int, shape: Sequence[str | int]) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, dtype, shape))

    def node(self, kind: str, *inputs: str, output: str = "", **options: Any) -> str:
        output = output or f"{kind}.{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, list(inputs), [output], **options))
        return output

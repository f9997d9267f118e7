"""Gives a foreign decoder the engine's signature: nodes before it and behind it (docs/adr/010).

    input_ids, positions, lengths ─▶ token ids, attention mask, position ids ─▶ decoder ─▶ logits ─▶ as asked
    past.NN    (B, H, S, D) ─▶ as far as the longest row goes, zero beyond a row's own end ─▶ decoder
    present.NN (B, H, S, D), the same buffer ◀─ new tokens, each where its row goes on ◀───── decoder

A cache that the decoder's attention itself writes into is past and present as it is.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx_ir.passes.common import NameFixPass
from onnx_ir.tape import Tape

from export.formats.decoder_graph import CONSTANTS, Cache, DecoderGraph
from export.manifest import StateTensor

INTEGER, REAL = ir.DataType.INT64, ir.DataType.FLOAT
END = np.iinfo(np.int64).max  # of an axis, however long
ASKED = "asked"  # the axis of the tokens whose logits are wanted

# Between the product with the head and the logits: what looks at one token alone.
POINTWISE = {"Add", "Cast", "Div", "Mul", "Tanh"}
PRODUCTS = {"MatMul", "MatMulNBits"}


def state_tensors(decoder: DecoderGraph, max_length: int) -> tuple[StateTensor, ...]:
    """The caches by the engine's names, each a buffer for the whole context."""
    return tuple(
        StateTensor(
            kind="kv",
            past=f"past.{index // 2:02d}.{('key', 'value')[index % 2]}",
            present=f"present.{index // 2:02d}.{('key', 'value')[index % 2]}",
            shape=(cache.num_heads, max_length, cache.head_dim),
            dtype=cache.dtype,
        )
        for index, cache in enumerate(decoder.caches)
    )


def adapt(model: ir.Model, decoder: DecoderGraph, max_length: int) -> ir.Model:
    """Put the engine's signature around the graph that `decoder` describes; changes and returns `model`."""
    _Adapter(model.graph, decoder).surround(state_tensors(decoder, max_length))
    model.graph.sort()
    NameFixPass()(model)
    return model


class _Adapter:
    """The nodes around one graph: B rows, T new tokens in each, S tokens before them in the longest."""

    def __init__(self, graph: ir.Graph, decoder: DecoderGraph) -> None:
        self._graph, self._decoder, self._tape = graph, decoder, Tape(graph)
        self._taken = {value.name: value for value in graph.inputs}
        self._given = {value.name: value for value in graph.outputs}
        tokens = self._taken[decoder.ids].shape
        assert tokens is not None
        self._B, self._T = tokens
        self._ids = self._port("input_ids", INTEGER, self._B, self._T)
        self._positions = self._port("positions", INTEGER, self._B, self._T)
        self._lengths = self._port("lengths", INTEGER, self._B)
        self._logits_at = self._port("logits_at", INTEGER, self._B, ASKED)
        self._places: dict[int, ir.Value] = {}

    def surround(self, states: tuple[StateTensor, ...]) -> None:
        """Let the graph take and give what the engine binds."""
        for value in self._given.values():
            value.name = f"decoder/{value.name}"
        self._starts = self._op("Gather", self._positions, self._number(0), axis=1)  # (B,)
        self._longest = self._op("ReduceMax", self._starts, keepdims=0)  # S
        self._feed({self._decoder.ids: self._ids, self._decoder.positions: self._positions})
        self._feed({self._decoder.mask: self._mask()})
        self._feed({name: self._fixed(name) for name in self._decoder.constants})
        logits = self._told(self._given[self._decoder.logits])
        caches = zip(self._decoder.caches, states, strict=True)
        pairs = [self._share(*each) if each[0].in_place else self._join(*each) for each in caches]
        pasts, presents = zip(*pairs, strict=True)
        self._graph.inputs[:] = [self._ids, self._positions, self._lengths, self._logits_at, *pasts]
        self._graph.outputs[:] = [logits, *presents]

    def _mask(self) -> ir.Value:
        """Which of a row's S past and T new places hold a token, (B, S + T)."""
        zero, one = self._number(0), self._number(1)
        T = self._op("Gather", self._op("Shape", self._ids), one)
        new = self._op("Less", self._op("Range", zero, T, one), self._upright(self._lengths))
        return self._op("Concat", self._past(), new, axis=1)

    def _past(self) -> ir.Value:
        """Which of the places before the new tokens a row has filled, (B, S)."""
        places = self._op("Range", self._number(0), self._longest, self._number(1))
        return self._op("Less", places, self._upright(self._starts))

    def _feed(self, fed: Mapping[str | None, ir.Value]) -> None:
        """Let the decoder read these values, in its own types, for its inputs of these names."""
        for name, value in fed.items():
            if name is not None:
                own = self._taken[name]
                own.replace_all_uses_with(self._op("Cast", value, to=_dtype(own)))

    def _fixed(self, name: str) -> ir.Value:
        """What an input that is always the same holds, in its shape."""
        return self._constant(np.full([1] * len(self._taken[name].shape or ()), CONSTANTS[name]))

    def _share(self, cache: Cache, state: StateTensor) -> tuple[ir.Value, ir.Value]:
        """A buffer that the decoder's attention writes into: the engine's, by its names and shape."""
        past, present = self._taken[cache.past], self._given[cache.present]
        for value, name in ((past, state.past), (present, state.present)):
            value.name, value.shape = name, ir.Shape([self._B, *state.shape])
        return past, present

    def _join(self, cache: Cache, state: StateTensor) -> tuple[ir.Value, ir.Value]:
        """S places of the buffer go in; of what comes out the T new ones go where their rows go on."""
        own, given = self._taken[cache.past], self._given[cache.present]
        past = self._port(state.past, _dtype(own), self._B, *state.shape)
        filled = self._slice(past, self._number(0), self._longest, axis=2)
        # Beyond a row's own end lies what others left: were it no number, no weight of zero would hide it.
        holds = self._op("Unsqueeze", self._past(), self._constant(np.array([1, 3])))  # (B, 1, S, 1)
        nothing = self._constant(np.zeros((), _dtype(own).numpy()))
        own.replace_all_uses_with(self._op("Where", holds, filled, nothing))
        new = self._slice(given, self._longest, self._number(END), axis=2)
        present = self._op("ScatterND", past, self._places_of(cache.num_heads), new)
        present.name, present.dtype, present.shape = state.present, _dtype(past), past.shape
        return past, present

    def _places_of(self, num_heads: int) -> ir.Value:
        """Row, head and position of every new token, (B, H, T, 3)."""
        if num_heads not in self._places:
            B, T = (self._op("Gather", self._op("Shape", self._ids), self._row(axis)) for axis in (0, 1))
            shape = self._op("Concat", B, self._row(num_heads), T, self._row(1), axis=0)
            rows = self._op("Range", self._number(0), self._op("Squeeze", B), self._number(1))
            heads = self._constant(np.arange(num_heads))
            parts = ((rows, [1, 2, 3]), (heads, [0, 2, 3]), (self._positions, [1, 3]))
            upright = [self._op("Unsqueeze", part, self._constant(np.array(axes))) for part, axes in parts]
            self._places[num_heads] = self._op(
                "Concat", *(self._op("Expand", part, shape) for part in upright), axis=-1
            )
        return self._places[num_heads]

    def _told(self, logits: ir.Value) -> ir.Value:
        """Logits at the tokens asked for, (B, K, V) in float32; the head reads no others where it can be."""
        if not self._decoder.tells_last:
            places = self._op("Unsqueeze", self._logits_at, self._row(2))
            head = _head(logits)
            if head is None:
                logits = self._op("GatherND", logits, places, batch_dims=1)
            else:
                head.replace_input_with(0, self._op("GatherND", head.inputs[0], places, batch_dims=1))
        told = self._op("Cast", logits, to=REAL)
        told.name, told.dtype = "logits", REAL
        told.shape = ir.Shape([self._B, ASKED, self._decoder.vocab_size])
        return told

    def _slice(self, value: ir.Value, start: ir.Value, stop: ir.Value, *, axis: int) -> ir.Value:
        bounds = (self._op("Unsqueeze", bound, self._row(0)) for bound in (start, stop))
        return self._op("Slice", value, *bounds, self._row(axis))

    def _upright(self, values: ir.Value) -> ir.Value:
        return self._op("Unsqueeze", values, self._row(1))

    def _op(self, kind: str, *inputs: ir.Value | None, **attributes: int) -> ir.Value:
        return self._tape.op(kind, inputs, {name: int(value) for name, value in attributes.items()})

    def _port(self, name: str, dtype: ir.DataType, *shape: int | str | ir.SymbolicDim) -> ir.Value:
        return ir.val(name, dtype, ir.Shape(shape))

    def _number(self, number: int) -> ir.Value:
        return self._constant(np.array(number))

    def _row(self, number: int) -> ir.Value:
        return self._constant(np.array([number]))

    def _constant(self, array: NDArray[Any]) -> ir.Value:
        name = f"engine/{array.dtype.name}{array.tolist()}"
        known = self._graph.initializers.get(name)
        return self._tape.initializer(ir.tensor(array, name=name)) if known is None else known


def _dtype(value: ir.Value) -> ir.DataType:
    dtype: ir.DataType | None = value.dtype
    assert dtype is not None
    return dtype


def _head(logits: ir.Value) -> ir.Node | None:
    """The product with constant weights that the logits follow from, token by token; None if it isn't so."""
    node = logits.producer()
    while node is not None and len(node.outputs[0].uses()) <= 1:
        moving = [value for value in node.inputs if value is not None and not _is_constant(value)]
        if len(moving) != 1 or moving[0] is not node.inputs[0]:
            return None
        if node.op_type in PRODUCTS:
            return node
        if node.op_type not in POINTWISE:
            return None
        node = moving[0].producer()
    return None


def _is_constant(value: ir.Value) -> bool:
    """Whether it is a weight, or one transposed or cast."""
    node = value.producer()
    while node is not None and node.op_type in ("Transpose", "Cast"):
        source = node.inputs[0]
        assert source is not None
        value, node = source, source.producer()
    return value.is_initializer() or (node is not None and node.op_type == "Constant")

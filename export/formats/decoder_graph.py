"""ONNX decoders by their signature: which tensors are tokens, which are caches, and how those grow."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Literal

from onnx import GraphProto, TensorProto, ValueInfoProto

from export.errors import ExportError
from export.formats.fields import Fields
from export.formats.genai import GenAIConfig, TensorNames, read_genai_config
from export.formats.graph_files import home_of
from export.formats.graph_ports import Ports, listed
from export.formats.onnx_graph import GraphFile
from export.formats.weight_files import CONFIG, read_json

Dtype = Literal["float32", "float16"]

CACHE = re.compile(r"past_key_values\.\d+\.\w+|past\.\d+\.\w+|past_\d+")
ATTENTION, CONTRIB = "GroupQueryAttention", "com.microsoft"
LEAST_OPSET = 13  # since when the operators around the graph are what they are

INTEGERS: Mapping[int, str] = {TensorProto.INT64: "int64", TensorProto.INT32: "int32"}
FLOATS: Mapping[int, Dtype] = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16"}
TOKENS = ("batch", "tokens")
PAST = ("batch", "heads", "past tokens", "head size")
LOGITS = ("batch", "tokens", "vocabulary")

# Inputs that say always the same: there may be past tokens; logits are wanted at the last token.
CONSTANTS = {"use_cache_branch": True, "num_logits_to_keep": 1}
TELLS_LAST = "num_logits_to_keep"

# What an input that is not known tells of the graph.
FOREIGN = {
    r"encoder_.*|past_key_values\.\d+\.(en|de)coder\..*|cross_.*": "it is the decoder of an encoder-decoder",
    r"inputs_embeds|(pixel|image|audio|vision)_.*": "it is a part of a multimodal model",
    r"beam_.*|cache_indirection": "it searches with beams",
    r"past_(conv|ssm|recurrent).*|(conv|ssm|rnn)_.*": "it carries a recurrent state",
}
CONTEXT = ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")


@dataclass(frozen=True)
class Cache:
    """One layer's keys or values: the names of past and present, its heads, a head's size.

    `in_place` tells one buffer for the whole context, which attention itself writes into, from a present that
    is the past with the new tokens behind it.
    """

    past: str
    present: str
    num_heads: int
    head_dim: int
    dtype: Dtype
    in_place: bool


@dataclass(frozen=True)
class DecoderGraph:
    """A decoder's signature; caches in the order of the layers, keys before values.

    `mask` and `positions` are None where the graph takes none, `constants` those of CONSTANTS that it takes.
    `tells_last` says that its logits are those of the last token only; `max_length` is None if unknown.
    """

    file: GraphFile
    directory: Path  # of the tokenizer
    genai: GenAIConfig | None
    ids: str
    mask: str | None
    positions: str | None
    constants: tuple[str, ...]
    logits: str
    tells_last: bool
    caches: tuple[Cache, ...]
    vocab_size: int
    max_length: int | None

    @property
    def layout(self) -> str:
        """One phrase on the caches."""
        cache, count = self.caches[0], len(self.caches) // 2
        grows = (
            "one buffer that attention writes into" if cache.in_place else "new tokens put behind the past"
        )
        shape = f"{count} layers of {cache.num_heads} heads of {cache.head_dim} in {cache.dtype}"
        return f"{'onnxruntime-genai' if self.genai else 'past_key_values'}: {shape}, {grows}"


def is_decoder(graph: GraphFile) -> bool:
    """Whether a graph carries a cache from step to step, by its inputs' names or by its folder's word."""
    has_cache = any(CACHE.fullmatch(value.name) for value in graph.model.graph.input)
    return has_cache or _genai_of(graph) is not None


def read_decoder(graph: GraphFile) -> DecoderGraph:
    """The signature of a decoder; ExportError says in one sentence what of it is not served."""
    config = home_of(graph.path) / CONFIG
    fields = Fields(read_json(config) if config.is_file() else {}, str(config))
    return _Reader(graph, _genai_of(graph), fields).read()


def _genai_of(graph: GraphFile) -> GenAIConfig | None:
    """What onnxruntime-genai is told of this very graph."""
    config = read_genai_config(graph.path.parent)
    return config if config is not None and config.graph == graph.path else None


class _Reader:
    """Finds the ports that a decoder must have, and no others."""

    def __init__(self, file: GraphFile, genai: GenAIConfig | None, config: Fields) -> None:
        self._file, self._genai, self._config = file, genai, config
        self._names = genai.names if genai else TensorNames()
        self._ports = Ports(file.path, file.model)

    def read(self) -> DecoderGraph:
        self._require_opset()
        caches = tuple(self._caches())
        self._require_known(caches)
        constants = tuple(name for name in CONSTANTS if name in self._ports.inputs)
        logits = self._ports.output(self._names.logits)
        self._ports.require_type(logits, FLOATS)
        _, told, vocab_size = self._ports.sizes(logits, LOGITS, free=(0,))
        if told not in (None, 1):
            raise self._ports.refused(f"{logits.name} are those of {told} tokens, not of all or of the last")
        return DecoderGraph(
            file=self._file,
            directory=Path(self._config.file).parent,
            genai=self._genai,
            ids=self._tokens(self._names.input_ids),
            mask=self._tokens_if_taken(self._names.attention_mask),
            positions=self._tokens_if_taken(self._names.position_ids),
            constants=constants,
            logits=logits.name,
            tells_last=told == 1 or TELLS_LAST in constants,
            caches=caches,
            vocab_size=vocab_size or self._vocab_size(),
            max_length=self._max_length(),
        )

    def _require_opset(self) -> None:
        opset = max((entry.version for entry in self._file.model.opset_import if not entry.domain), default=0)
        if opset < LEAST_OPSET:
            raise self._ports.refused(f"it is written in opset {opset}; {LEAST_OPSET} and later are served")

    def _caches(self) -> Iterator[Cache]:
        """Every layer's keys and values, each past with its present."""
        names, ports = self._names, self._ports
        pairs = (
            (names.past_key_names, names.present_key_names),
            (names.past_value_names, names.present_value_names),
        )
        layers = sorted({layer for past, _ in pairs for layer in _layers(past, ports.inputs)})
        if not layers:
            raise ports.refused(f"it takes no {names.past_key_names}, but {listed(ports.inputs)}")
        expected = {present % layer for _, present in pairs for layer in layers}
        given = {present % layer for _, present in pairs for layer in _layers(present, ports.outputs)}
        if given - expected:
            raise ports.refused(f"it gives {listed(sorted(given - expected))}, but takes no such past")
        yield from (self._cache(past % layer, present % layer) for layer in layers for past, present in pairs)

    def _cache(self, past: str, present: str) -> Cache:
        ports = self._ports
        taken, given = ports.input(past), ports.output(present)
        dtype = ports.require_type(taken, FLOATS)
        ports.require_type(given, {taken.type.tensor_type.elem_type: dtype})
        _, num_heads, _, head_dim = ports.sizes(taken, PAST, free=(0, 2))
        if self._genai:
            num_heads, head_dim = num_heads or self._genai.num_kv_heads, head_dim or self._genai.head_dim
        if num_heads is None or head_dim is None:
            raise ports.refused(f"{past} does not tell how many heads of what size it has")
        in_place = _is_written_in_place(self._file.model.graph, past, present)
        return Cache(past, present, num_heads, head_dim, dtype, in_place)

    def _require_known(self, caches: tuple[Cache, ...]) -> None:
        """Refuse what the engine has no value for."""
        ports, names = self._ports, self._names
        if len({cache.in_place for cache in caches}) > 1:
            raise ports.refused("some of its caches are written in place and some are not")
        known = {names.input_ids, names.attention_mask, names.position_ids, *CONSTANTS}
        unknown = sorted(ports.inputs.keys() - known - {cache.past for cache in caches})
        told = [what for form, what in FOREIGN.items() if any(re.fullmatch(form, name) for name in unknown)]
        if unknown:
            also = f"{told[0]}, for " if told else ""
            raise ports.refused(f"{also}it takes {listed(unknown)}, too")
        for name in ports.inputs.keys() & CONSTANTS:
            shape = ports.inputs[name].type.tensor_type.shape
            if prod(dim.dim_value or 1 for dim in shape.dim) != 1:
                raise ports.refused(f"{name} is more than one value")

    def _tokens(self, name: str) -> str:
        value: ValueInfoProto = self._ports.input(name)
        self._ports.require_type(value, INTEGERS)
        self._ports.sizes(value, TOKENS, free=(0, 1))
        return name

    def _tokens_if_taken(self, name: str) -> str | None:
        return self._tokens(name) if name in self._ports.inputs else None

    def _vocab_size(self) -> int:
        known = self._genai.vocab_size if self._genai else self._size("vocab_size")
        if known is None:
            raise self._ports.refused(
                f"neither its logits nor {self._config.file} tell how many tokens there are"
            )
        return known

    def _max_length(self) -> int | None:
        sizes = (self._size(name) for name in CONTEXT)
        return self._genai.max_length if self._genai else next(filter(None, sizes), None)

    def _size(self, name: str) -> int | None:
        """A size that config.json may tell."""
        size = self._config.integer(name) if name in self._config else None
        if size is not None and size < 1:
            raise ExportError(f"{self._config.file}: {name} is {size}; a size is needed")
        return size


def _layers(pattern: str, names: Mapping[str, ValueInfoProto]) -> set[int]:
    """The numbers of the layers for which there is a tensor called so."""
    before, after = map(re.escape, pattern.split("%d"))
    found = (re.fullmatch(f"{before}(0|[1-9][0-9]{{0,3}}){after}", name) for name in names)
    return {int(match[1]) for match in found if match}


def _is_written_in_place(graph: GraphProto, past: str, present: str) -> bool:
    """Whether one GroupQueryAttention alone reads the past and gives the present."""
    readers = [node for node in graph.node if past in node.input]
    attends = len(readers) == 1 and (readers[0].domain, readers[0].op_type) == (CONTRIB, ATTENTION)
    return attends and present in readers[0].output

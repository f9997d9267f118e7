"""What `trident inspect` says: everything that can be told of a checkpoint without reading its weights."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer

from export.errors import ExportError
from export.formats.chat_template import check_chat_template
from export.formats.decoder_graph import is_decoder, read_decoder
from export.formats.detect import Format, detect_format, source_files
from export.formats.imported import Checkpoint
from export.formats.onnx_graph import GraphFile, describe_port, read_graph
from export.formats.readers import open_checkpoint
from training.config import ModelConfig
from training.decoder import Decoder, count_parameters

MEGABYTE = 1e6


@dataclass(frozen=True)
class Inspection:
    """A checkpoint's description: (what, how) in the order of reading, and what is odd about it."""

    rows: tuple[tuple[str, str], ...]
    oddities: tuple[str, ...]


def inspect(path: Path) -> Inspection:
    """Describe the checkpoint at `path`. Raises ExportError where importing it would."""
    kind = detect_format(path)
    if kind == "onnx":
        return inspect_graph(path)
    checkpoint = open_checkpoint(path)
    return Inspection(tuple(_rows(path, kind, checkpoint)), tuple(_oddities(checkpoint)))


def inspect_graph(path: Path) -> Inspection:
    """Describe the ONNX graph at `path`."""
    graph = read_graph(path)
    model, size = graph.model, sum(file.stat().st_size for file in graph.files)
    opsets = ", ".join(f"{entry.domain or 'ai.onnx'} {entry.version}" for entry in model.opset_import)
    names = {tensor.name for tensor in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in names]
    rows = (
        ("format", f"onnx, {size / MEGABYTE:.1f} MB in {len(graph.files)} files"),
        ("made by", f"{model.producer_name or 'nobody that says so'}; opset {opsets}"),
        ("graph", f"{len(model.graph.node):,} nodes, {len(names):,} weights"),
        ("inputs", "\n".join(map(describe_port, inputs))),
        ("outputs", "\n".join(map(describe_port, model.graph.output))),
        ("served as", _graph_served(graph)),
    )
    return Inspection(rows, ())


def _graph_served(graph: GraphFile) -> str:
    """By which backend and in which layout, or why not."""
    if not is_decoder(graph):
        return "onnxruntime, as it is"
    try:
        decoder = read_decoder(graph)
    except ExportError as error:
        return f"nothing: {error}"
    context = f"{decoder.max_length:,} tokens" if decoder.max_length else "a context that --max-length gives"
    return f"causal_lm, as it is; {decoder.layout}; {decoder.vocab_size:,} words, {context}"


def _rows(path: Path, kind: Format, checkpoint: Checkpoint) -> Iterator[tuple[str, str]]:
    config = checkpoint.config
    size = sum(file.stat().st_size for file in source_files(path, kind))
    yield "format", f"{kind}, {size / MEGABYTE:.1f} MB"
    yield "architecture", f"{checkpoint.architecture}: {_describe(config)}"
    yield "parameters", f"{count_parameters(config):,}"
    yield "stored as", _dtypes(checkpoint)
    yield "context", f"{config.max_length:,} tokens{_limits(config)}"
    yield "tokenizer", _tokenizer(checkpoint)
    yield "chat template", _template(checkpoint)
    yield "served as", _served(config)


def _describe(config: ModelConfig) -> str:
    parts = [f"{config.num_layers} layers of {config.d_model}"]
    heads = f"{config.num_heads} heads of {config.head_dim}"
    if config.num_kv_heads != config.num_heads:
        heads += f" on {config.num_kv_heads} key heads"
    parts.append(heads)
    ffns = " and ".join(dict.fromkeys(config.ffns))
    experts = f", {config.experts_per_token} of {config.num_experts} experts" if config.num_experts else ""
    parts.append(f"{ffns} of {config.d_ff}{experts}")
    parts.append(f"{config.position} positions")
    parts.append("tied head" if config.tied_head else "head of its own")
    return ", ".join(parts)


def _limits(config: ModelConfig) -> str:
    window = f", of which each layer sees the last {config.sliding_window:,}" if config.sliding_window else ""
    scaling = config.rope_scaling
    return window + (f", positions scaled {scaling.factor:g} times ({scaling.kind})" if scaling else "")


def _dtypes(checkpoint: Checkpoint) -> str:
    counts: Counter[str] = Counter()
    for info in checkpoint.infos.values():
        counts[info.dtype] += math.prod(info.shape)
    total = sum(counts.values())
    return ", ".join(f"{dtype} {count / total:.1%}" for dtype, count in counts.most_common())


def _tokenizer(checkpoint: Checkpoint) -> str:
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer.tokenizer)
    ends = ", ".join(repr(tokenizer.id_to_token(end)) for end in checkpoint.special_tokens.eos)
    kind = type(tokenizer.model).__name__
    return f"{kind}, {tokenizer.get_vocab_size(with_added_tokens=True):,} tokens, ended by {ends}"


def _template(checkpoint: Checkpoint) -> str:
    files = checkpoint.tokenizer
    if files.chat_template is None:
        return "none"
    check_chat_template(files.chat_template, files.config)
    return f"{len(files.chat_template):,} characters, renders"


def _served(config: ModelConfig) -> str:
    with torch.device("meta"):
        specs = Decoder(config).state_specs()
    state = sum(4 * math.prod(spec.shape) for spec in specs)
    floats = 4 * count_parameters(config) / MEGABYTE
    return (
        f"causal_lm on ONNX Runtime; about {floats:,.0f} MB in fp32, {floats / 3.5:,.0f} MB in int8; "
        f"{state / MEGABYTE:,.0f} MB of state per sequence"
    )


def _oddities(checkpoint: Checkpoint) -> Iterator[str]:
    yield from checkpoint.oddities
    config, files = checkpoint.config, checkpoint.tokenizer
    tokens = Tokenizer.from_str(files.tokenizer).get_vocab_size(with_added_tokens=True)
    if tokens < config.vocab_size:
        yield f"{config.vocab_size - tokens} of the model's {config.vocab_size} tokens have no text"
    if files.chat_template is None:
        yield "without a chat template it takes prompts, not messages: --chat-template FILE gives it one"
    if config.sliding_window and config.sliding_window >= config.max_length:
        yield "its window is as long as its context, and so of no effect"

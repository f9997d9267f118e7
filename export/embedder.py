"""Embedders: read → graph → compare → install, for encoders and for any decoder."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from export.comparison import hash_artifact
from export.embedder_config import (
    embedder_config,
    embedder_name,
    embedding_config,
    embedding_name,
    embedding_tokenizer_config,
    embedding_tokenizer_name,
)
from export.embedder_graph import INPUTS, DecoderBody, Embedder, Pooling, graph_from_embedder
from export.embedder_options import EmbedderOptions
from export.errors import ExportError
from export.formats.detect import hash_files, stamp_source
from export.formats.imported import ImportedModel
from export.formats.readers import read_model
from export.formats.text_encoder import encoder_files, is_text_encoder, read_text_encoder
from export.formats.weight_files import GRAPH
from export.graph_report import Check, GraphOutcome, GraphReport, installed_report, write_report
from export.installed import latest_version
from export.manifest import SourceStamp
from export.pipeline import Progress, check_name
from export.repository import install_version
from export.sources import find_source
from export.stamps import library_stamps, recipe_hash
from export.workspace import workspace

LIMIT = 1e-4  # on vectors of length 1: the same numbers summed in another order
DECODER_LENGTH = 2048  # attention over whole texts takes memory by the square of their length
LENGTHS = (1, 2, 7, 16, 63, 120)


@dataclass(frozen=True)
class TextEmbedder:
    """What is exported, and the tokenizer that goes before it."""

    embedder: Embedder
    max_length: int
    vocab_size: int
    pad: int
    tokenizer: str


def export_embedder(options: EmbedderOptions, progress: Progress) -> GraphOutcome:
    """Install `NAME_embedder`, its tokenizer and the ensemble; what is there from equal inputs stays.

    Raises ExportError in one sentence. Nothing half-done stays behind, whatever happens.
    """
    check_name(options.model)
    path = find_source(options.model, options.source)
    source = stamp(path)
    request = _request_hash(options, source)
    target = options.repository / embedder_name(options.model)
    current = target / str(latest_version(target))
    report = installed_report(current)
    if report is not None and report.request == request and not options.force:
        return GraphOutcome(current, report, is_new=False)
    with workspace(options.repository, target.name) as work:
        progress("read", str(path))
        text_embedder = read_embedder(path, options)
        return _build(text_embedder, options, request, source, work, progress)


def stamp(path: Path) -> SourceStamp:
    """Name, format and hash of what is read."""
    if not is_text_encoder(path):
        return stamp_source(path)
    name = path.resolve().name
    return SourceStamp(file=name, format="text encoder", sha256=hash_files(encoder_files(path)))


def read_embedder(path: Path, options: EmbedderOptions) -> TextEmbedder:
    """The model at `path`: an encoder pools as it was trained to, a decoder as `options` say."""
    if is_text_encoder(path):
        encoder = read_text_encoder(path)
        if options.pooling not in (None, encoder.pooling):
            raise ExportError(f"{path} was trained with {encoder.pooling} pooling; leave --embedder out")
        longest = _length(options.max_length, encoder.max_length, encoder.max_length)
        embedder = Embedder(encoder.body, encoder.pooling)
        return TextEmbedder(embedder, longest, encoder.vocab_size, encoder.pad, encoder.tokenizer)
    model = read_model(path)
    config = model.decoder.config
    longest = _length(options.max_length, config.max_length, min(config.max_length, DECODER_LENGTH))
    embedder = Embedder(DecoderBody(model.decoder), options.pooling or "mean")
    pad = model.special_tokens.pad or 0
    return TextEmbedder(embedder, longest, config.vocab_size, pad, tokenizer_of_decoder(model))


def _length(given: int | None, allowed: int, default: int) -> int:
    if given is not None and not 1 <= given <= allowed:
        raise ExportError(f"max length {given} was given; this model allows 1 to {allowed}")
    return given or default


def tokenizer_of_decoder(model: ImportedModel) -> str:
    """Its tokenizer, with the first token put before a text where the model was trained so."""
    tokenizer = Tokenizer.from_str(model.tokenizer.tokenizer)
    bos = model.special_tokens.bos
    tokenizer.post_processor = TemplateProcessing(single="$A", special_tokens=[])
    if bos is not None and model.tokenizer.config.get("add_bos_token"):
        token = tokenizer.id_to_token(bos)
        tokenizer.post_processor = TemplateProcessing(single=f"{token} $A", special_tokens=[(token, bos)])
    text: str = tokenizer.to_str()
    return text


def _build(
    text: TextEmbedder,
    options: EmbedderOptions,
    request: str,
    source: SourceStamp,
    work: Path,
    progress: Progress,
) -> GraphOutcome:
    engine, tokenizer, nothing = (work / name for name in ("embedder", "tokenizer", "ensemble"))
    for directory in (engine, tokenizer, nothing):
        directory.mkdir()
    progress("graph", "trace, fuse, write in float32")
    graph_from_embedder(text.embedder, engine / GRAPH, max_length=text.max_length)
    progress("compare", "rows of several lengths, padded against alone")
    report = GraphReport(
        model=embedder_name(options.model),
        request=request,
        source=source,
        artifact=hash_artifact(sorted(engine.iterdir())),
        reference="PyTorch in float32, each text alone",
        checks=(compare(engine / GRAPH, text),),
    )
    report.require_passed()
    write_report(report, engine)
    (tokenizer / "tokenizer.json").write_text(text.tokenizer, encoding="utf-8")
    settings = {"max_length": text.max_length, "pad": text.pad}
    (tokenizer / "embedding.json").write_text(json.dumps(settings) + "\n", encoding="utf-8")
    progress("install", str(options.repository))
    repository, width = options.repository, width_of(text)
    repository.mkdir(parents=True, exist_ok=True)
    parts = {
        embedding_tokenizer_name: (tokenizer, embedding_tokenizer_config(options.model)),
        embedder_name: (engine, embedder_config(options.model, width)),
        # The ensemble comes last: when clients can see it, its steps are there.
        embedding_name: (nothing, embedding_config(options.model, width)),
    }
    installed = {
        name: install_version(repository / name(options.model), *part) for name, part in parts.items()
    }
    return GraphOutcome(installed[embedder_name].directory, report, is_new=True)


def width_of(text: TextEmbedder) -> int:
    """How many numbers a vector has."""
    one = torch.ones(1, 1, dtype=torch.long)
    with torch.no_grad():
        return int(text.embedder(one, one).shape[-1])


def compare(path: Path, text: TextEmbedder, seed: int = 0) -> Check:
    """The graph on a padded batch of random texts against PyTorch on each of them alone."""
    rng = np.random.default_rng(seed)
    lengths = [length for length in LENGTHS if length <= text.max_length] + [min(text.max_length, 300)]
    T = max(lengths)
    ids = rng.integers(0, text.vocab_size, (len(lengths), T))
    mask = (np.arange(T) < np.array(lengths)[:, None]).astype(np.int64)
    session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, dict(zip(INPUTS, (ids, mask), strict=True)))
    with torch.no_grad():
        alone = [
            text.embedder(torch.from_numpy(row[None, :length]), torch.ones(1, length, dtype=torch.long))
            for row, length in zip(ids, lengths, strict=True)
        ]
    error = float(np.abs(found - torch.cat(alone).numpy()).max())
    return Check(name=f"vectors of {min(lengths)} to {T} tokens", max_error=error, limit=LIMIT)


def _request_hash(options: EmbedderOptions, source: SourceStamp) -> str:
    pooling: Pooling | None = options.pooling
    request = {
        "model": options.model,
        "source": source.model_dump(),
        "pooling": pooling,
        "max_length": options.max_length,
        "stamps": library_stamps("onnxruntime"),
        "recipe": recipe_hash(),
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

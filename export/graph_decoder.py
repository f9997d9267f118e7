"""`trident import` of an ONNX decoder: read → adapt → prove → install; its weights stay as they are."""

import shutil
from collections import Counter
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Literal

import onnx_ir as ir
from onnx import TensorProto

from export.comparison import Comparison, hash_artifact, read_comparison, require_passed, write_comparison
from export.decoder_proof import Request, prove_decoder
from export.errors import ExportError
from export.formats.decoder_graph import DecoderGraph, read_decoder
from export.formats.detect import hash_files
from export.formats.genai import GENAI_CONFIG
from export.formats.hf_tokenizer import read_tokenizer
from export.formats.imported import TOKENIZER, TokenizerFiles, with_template
from export.formats.onnx_graph import GraphFile
from export.formats.weight_files import COMPANIONS
from export.graph_adapter import adapt, state_tensors
from export.manifest import Manifest, Precision, SourceStamp, SpecialTokens, write_manifest
from export.onnx_files import save_graph
from export.pipeline import ExportOptions, Job, Outcome, Progress, check_name, existing_artifact
from export.plain_decoder import NAME, Past, Signature
from export.repository import install
from export.sources import sampling_for
from export.stamps import library_stamps, request_hash
from export.workspace import require_disk, workspace

GRAPH: Literal["model.onnx"] = "model.onnx"
DISK_FACTOR = 2  # the copy, and room for what others write
INTEGER_PRODUCTS = {
    "DequantizeLinear",
    "DynamicQuantizeMatMul",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
}


@dataclass(frozen=True)
class Source:
    """A decoder's graph with all that belongs to it, understood and not run yet."""

    graph: DecoderGraph
    precision: Precision
    max_length: int
    tokenizer: TokenizerFiles
    special_tokens: SpecialTokens


def import_decoder(options: ExportOptions, file: GraphFile, progress: Progress) -> Outcome:
    """Install the decoder in `file` as a model like any other; what is installed from equal inputs stays.

    The precision is the graph's own. Raises ExportError in one sentence; nothing half-done stays behind.
    """
    check_name(options.model)
    source = read_source(options, file)
    job = _job(replace(options, precision=source.precision), source)
    directory = existing_artifact(job)
    if directory is not None and not options.force:
        return Outcome(directory, read_comparison(directory), is_new=False)
    with workspace(options.repository, options.model) as work:
        progress("read", str(file.path))
        engine, tokenizer = work / "engine", work / "tokenizer"
        write_engine(source, engine, tokenizer)
        progress("compare", NAME)
        comparison = compare_decoder(job, source, engine)
        require_passed(engine)
        write_manifest(_manifest(job, source), engine / "manifest.json")
        progress("install", str(options.repository))
        installed = install(options.repository, options.model, engine=engine, tokenizer=tokenizer)
    note = "" if installed.is_new else "These very files were installed already; their version stays."
    return Outcome(installed.directory, comparison, is_new=True, note=note)


def read_source(options: ExportOptions, file: GraphFile) -> Source:
    """The graph's signature, its tokenizer, and how much text it takes. Raises ExportError."""
    graph = read_decoder(file)
    max_length = options.max_length or graph.max_length
    if max_length is None:
        raise ExportError(f"nothing beside {file.path} tells how long a text may be: give --max-length")
    if not 1 <= max_length <= (graph.max_length or max_length):
        raise ExportError(f"max length {max_length} was given; this model allows 1 to {graph.max_length}")
    tokenizer, special_tokens = read_tokenizer(graph.directory, graph.vocab_size, _ends(graph))
    return Source(
        graph=graph,
        precision=precision_of(file),
        max_length=max_length,
        tokenizer=with_template(tokenizer, options.chat_template),
        special_tokens=special_tokens,
    )


def _ends(graph: DecoderGraph) -> tuple[int, ...]:
    """The tokens that end a text by genai_config.json."""
    ends = graph.genai.eos if graph.genai else ()
    for end in ends:
        if end >= graph.vocab_size:
            raise ExportError(
                f"{GENAI_CONFIG}: eos_token_id {end} is no token; they go from 0 to {graph.vocab_size - 1}"
            )
    return ends


def precision_of(file: GraphFile) -> Precision:
    """What most of the graph's products are computed from, by its operators and the types of its weights."""
    nodes = file.model.graph.node
    bits = {
        attribute.i
        for node in nodes
        if node.op_type == "MatMulNBits"
        for attribute in node.attribute
        if attribute.name == "bits"
    }
    if bits or any(node.op_type == "MatMulNBits" for node in nodes):
        return "int8" if bits == {8} else "int4"
    if any(node.op_type in INTEGER_PRODUCTS for node in nodes):
        return "int8"
    sizes = Counter[int]()
    for tensor in file.model.graph.initializer:
        sizes[tensor.data_type] += prod(tensor.dims)
    return "fp16" if sizes[TensorProto.FLOAT16] > sizes[TensorProto.FLOAT] else "fp32"


def _job(options: ExportOptions, source: Source) -> Job:
    """What the installed files follow from, hashed."""
    graph, template = source.graph, options.chat_template
    companions = [graph.directory / name for name in (*COMPANIONS, GENAI_CONFIG)]
    files = [*graph.file.files, *filter(Path.is_file, companions), *([template] if template else [])]
    stamp = SourceStamp(file=graph.file.path.resolve().name, format="onnx", sha256=hash_files(files))
    sampling = sampling_for(options.model)
    request = request_hash(
        model=options.model,
        source=stamp,
        engine=options.engine,
        precision=options.precision,
        max_length=options.max_length,
        sampling=sampling,
    )
    return Job(options, graph.file.path, stamp, sampling, request)


def write_engine(source: Source, engine: Path, tokenizer: Path) -> None:
    """The adapted graph with its weights as they are, and the tokenizer's files. Raises ExportError."""
    file = source.graph.file
    require_disk(engine.parent, DISK_FACTOR * sum(path.stat().st_size for path in file.files))
    engine.mkdir()
    tokenizer.mkdir()
    source.tokenizer.write(tokenizer)
    shutil.copyfile(tokenizer / TOKENIZER, engine / TOKENIZER)
    for path in file.weights:
        shutil.copyfile(path, engine / path.name)
    try:
        model = adapt(ir.from_proto(file.model), source.graph, source.max_length)
        _write(model, engine / GRAPH, has_files=bool(file.weights))
    except Exception as error:  # whatever onnx_ir makes of a graph that is none
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ExportError(f"{file.path} is damaged: {reason}") from error


def _write(model: ir.Model, path: Path, *, has_files: bool) -> None:
    """The graph at `path`; the weights inside it go beside it, to be mapped, unless it `has_files` so."""
    if has_files:
        path.write_bytes(ir.to_proto(model).SerializeToString())
    else:
        save_graph(model, path)


def compare_decoder(job: Job, source: Source, engine: Path) -> Comparison:
    """The report on the adapted graph in `engine`, written beside it; it may say that it did not pass."""
    graph, options = source.graph, job.options
    files = sorted(path for path in engine.iterdir() if path.name != TOKENIZER)
    proof = prove_decoder(
        Request(
            original=graph.file.path.resolve(),
            adapted=engine / GRAPH,
            size=sum(path.stat().st_size for path in files),
            signature=_signature(graph),
            states=state_tensors(graph, source.max_length),
            precision=source.precision,
            max_length=source.max_length,
            tokenizer=engine / TOKENIZER,
        )
    )
    comparison = Comparison(
        model=options.model,
        engine=options.engine,
        precision=source.precision,
        request=job.request,
        artifact=hash_artifact(files),
        reference=NAME,
        ran_on="ONNX Runtime on the CPU",
        scenarios=proof.scenarios,
        perplexity=proof.perplexity,
        experts=None,
    )
    write_comparison(comparison, engine)
    return comparison


def _signature(graph: DecoderGraph) -> Signature:
    caches = (Past.model_validate(cache, from_attributes=True) for cache in graph.caches)
    return Signature(
        ids=graph.ids,
        mask=graph.mask,
        positions=graph.positions,
        logits=graph.logits,
        tells_last=graph.tells_last and "num_logits_to_keep" not in graph.constants,
        caches=tuple(caches),
    )


def _manifest(job: Job, source: Source) -> Manifest:
    return Manifest(
        format="trident-engine/2",
        model=job.options.model,
        engine="onnxruntime",
        precision=source.precision,
        graph=GRAPH,
        source=job.source,
        stamps=library_stamps("onnxruntime"),
        vocab_size=source.graph.vocab_size,
        max_length=source.max_length,
        states=state_tensors(source.graph, source.max_length),
        special_tokens=source.special_tokens,
        sampling=job.sampling,
        extra_outputs=(),
    )

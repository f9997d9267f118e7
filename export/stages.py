"""The stages of one export, from reading to installing. Loads torch and ONNX."""

import shutil
from pathlib import Path

from export.compare import compare_graph
from export.comparison import Comparison, hash_artifact, require_passed, write_comparison
from export.formats.imported import TOKENIZER, ImportedModel, with_max_length
from export.formats.readers import read_model
from export.graph import graph_from_decoder
from export.graph_session import GraphSession
from export.manifest import Manifest, StateTensor, write_manifest
from export.pipeline import Job, Outcome, Progress
from export.quantize import quantize_graph
from export.repository import install
from export.stamps import library_stamps
from export.tolerances import TOLERANCES
from export.workspace import require_disk, workspace
from training.decoder import Decoder

GRAPH = "model.onnx"
FLOAT_BYTES = 4
# Input channels that share a scale. On SmolLM2 in int8: perplexity +0.4 %, with 128 it is +0.7 %; a decode
# step of one row takes 2 % longer, of eight rows 14 %.
BLOCK_SIZE = 32
DISK_FACTOR = 3  # the float32 graph, the quantized one, and room for what others write


def run_stages(job: Job, progress: Progress) -> Outcome:
    """Do everything that `job` asks for. Raises ExportError; leaves nothing half-done."""
    options = job.options
    with workspace(options.repository, options.model) as work:
        progress("read", str(job.path))
        model = with_max_length(read_model(job.path), options.max_length)
        require_disk(work, DISK_FACTOR * FLOAT_BYTES * model.decoder.num_parameters())
        engine, tokenizer = work / "engine", work / "tokenizer"
        engine.mkdir()
        tokenizer.mkdir()
        graph = build_graph(job, model.decoder, engine / GRAPH, progress)
        comparison = compare(job, model, graph, progress)
        write_comparison(comparison, engine)
        require_passed(engine)
        model.tokenizer.write(tokenizer)
        shutil.copyfile(tokenizer / TOKENIZER, engine / TOKENIZER)
        write_manifest(manifest_for(job, model), engine / "manifest.json")
        progress("install", str(options.repository))
        installed = install(options.repository, options.model, engine=engine, tokenizer=tokenizer)
    note = "" if installed.is_new else "These very files were installed already; their version stays."
    return Outcome(installed.directory, comparison, is_new=True, note=note)


def build_graph(job: Job, decoder: Decoder, path: Path, progress: Progress) -> Path:
    """The decoder's step graph in the job's precision at `path`."""
    precision = job.options.precision
    progress("graph", "trace, fuse, write")
    if precision == "fp32":
        return graph_from_decoder(decoder, path, lowering="onnxruntime")
    in_float = graph_from_decoder(decoder, path.parent.with_name("fp32") / GRAPH, lowering="onnxruntime")
    progress("quantize", precision)
    quantize_graph(in_float, path, precision, BLOCK_SIZE)
    shutil.rmtree(in_float.parent)
    return path


def compare(job: Job, model: ImportedModel, graph: Path, progress: Progress) -> Comparison:
    """The report on `graph`, which may say that it did not pass."""
    options = job.options
    session = GraphSession(graph, model.decoder.state_specs(), in_place=True)
    scenarios, perplexity, experts = compare_graph(
        session,
        model,
        tolerance=TOLERANCES[options.precision],
        report=lambda detail: progress("compare", detail),
    )
    return Comparison(
        model=options.model,
        engine=options.engine,
        precision=options.precision,
        request=job.request,
        artifact=hash_artifact(sorted(graph.parent.iterdir())),
        reference="PyTorch, float32, full sequence",
        scenarios=tuple(scenarios),
        perplexity=perplexity,
        experts=experts,
    )


def manifest_for(job: Job, model: ImportedModel) -> Manifest:
    """What the engine needs to run the graph."""
    options, config = job.options, model.decoder.config
    states = tuple(
        StateTensor.model_validate(
            {"kind": s.kind, "past": s.past, "present": s.present, "shape": s.shape, "dtype": s.dtype}
        )
        for s in model.decoder.state_specs()
    )
    return Manifest(
        format="trident-engine/1",
        model=options.model,
        engine=options.engine,
        precision=options.precision,
        graph="model.onnx",
        source=job.source,
        stamps=library_stamps(options.engine),
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        states=states,
        special_tokens=model.special_tokens,
        sampling=job.sampling,
        extra_outputs=(),
    )

"""The stages of one export: read → graph → (quantize) → compare → install, or → plan."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from export.compare import compare_graph
from export.compare_figures import compare_figures
from export.comparison import Comparison, hash_artifact, require_passed, write_comparison
from export.formats.imported import TOKENIZER, ImportedModel, with_chat_template, with_max_length
from export.formats.readers import read_model
from export.graph import graph_from_decoder
from export.graph_session import GraphSession, input_dtypes
from export.manifest import Manifest, StateTensor, write_manifest
from export.pipeline import Job, Outcome, Progress
from export.quantize import BITS, BLOCKS, quantize_graph
from export.repository import install
from export.smoothing import on_grids, smooth
from export.stamps import library_stamps
from export.tensorrt import build_plan, decode_and_prefill
from export.tolerances import TOLERANCES
from export.workspace import require_disk, workspace
from training.checkpoint import atomic_directory
from training.memory import return_freed_memory

GraphName = Literal["model.onnx", "model.plan"]
Lowering = Literal["onnxruntime", "standard"]
Dtype = Literal["float32", "float16"]

GRAPH: Literal["model.onnx"] = "model.onnx"
PLAN: Literal["model.plan"] = "model.plan"
MANIFEST = "manifest.json"
FLOAT_BYTES = 4
DISK_FACTOR = 3  # the float32 graph, the quantized one, and room for what others write

# A plan's cache is one static buffer per slot: without --max-length it is no longer than this.
PLAN_LENGTH = 2048
PLAN_BATCH, PLAN_PREFILL_BATCH, PLAN_CHUNK = 16, 4, 256
PLAN_NOTE = (
    "The engine does not run plans yet, so this one is not installed: it waits where it lies, and what the "
    "repository serves stays as it is. Its graph was compared on ONNX Runtime in float32; the plan itself "
    "has not run."
)


@dataclass(frozen=True)
class Draft:
    """An artifact in the making: the model, its graph, and the directories that fill up."""

    job: Job
    model: ImportedModel
    engine: Path
    tokenizer: Path

    @property
    def figures(self) -> tuple[str, ...]:
        """What the model tells of itself: the graph's extra outputs."""
        return self.model.decoder.extra_names()


def run_stages(job: Job, progress: Progress) -> Outcome:
    """Do everything that `job` asks for. Raises ExportError; leaves nothing half-done."""
    options = job.options
    with workspace(options.repository if job.is_installed else options.plan_directory, options.model) as work:
        progress("read", str(job.path))
        draft = read(job, work)
        # A plan's graph is compared in float32: ONNX Runtime's float16 kernels for a CPU can't be trusted.
        build_graph(draft, "float32", progress)
        comparison = compare(draft, progress)
        require_passed(draft.engine)
        if not job.is_installed:
            return deliver_plan(draft, comparison, progress)
        write_manifest(manifest_for(draft, GRAPH, {}), draft.engine / MANIFEST)
        progress("install", str(options.repository))
        installed = install(
            options.repository,
            options.model,
            engine=draft.engine,
            tokenizer=draft.tokenizer,
            figures=draft.figures,
        )
    note = "" if installed.is_new else "These very files were installed already; their version stays."
    return Outcome(installed.directory, comparison, is_new=True, note=note)


def read(job: Job, work: Path) -> Draft:
    """Read the model, and write its tokenizer where engine and tokenizer will look for it."""
    model = with_chat_template(read_model(job.path), job.options.chat_template)
    length = job.options.max_length
    if length is None and not job.is_installed:
        length = min(PLAN_LENGTH, model.decoder.config.max_length)
    require_disk(work, DISK_FACTOR * FLOAT_BYTES * model.decoder.num_parameters())
    draft = Draft(job, with_max_length(model, length), work / "engine", work / "tokenizer")
    draft.engine.mkdir()
    draft.tokenizer.mkdir()
    draft.model.tokenizer.write(draft.tokenizer)
    shutil.copyfile(draft.tokenizer / TOKENIZER, draft.engine / TOKENIZER)
    return draft


def build_graph(draft: Draft, dtype: Dtype, progress: Progress) -> None:
    """Write the decoder's step graph in the job's precision, what is not quantized in `dtype`."""
    precision, path = draft.job.options.precision, draft.engine / GRAPH
    lowering: Lowering = "onnxruntime" if draft.job.is_installed else "standard"
    progress("graph", f"trace, fuse, write in {dtype}")
    if precision in ("fp32", "fp16"):
        graph_from_decoder(
            draft.model.decoder,
            path,
            lowering=lowering,
            dtype=dtype,
            extra_outputs=draft.figures,
            experts="grouped",
        )
        return
    whole = draft.engine.with_name("whole") / GRAPH
    # A plan's grids have no offsets, so there is nothing to spare.
    has_offsets = precision == "int4" and lowering == "onnxruntime"
    spared = on_grids(draft.model.decoder, BLOCKS[BITS[precision]]) if has_offsets else frozenset[str]()
    smoothed = smooth(draft.model.decoder, draft.model.tokenizer.tokenizer, spared)
    graph_from_decoder(smoothed, whole, lowering=lowering, dtype=dtype, extra_outputs=draft.figures)
    del smoothed  # half a gigabyte for a model of 135 M
    return_freed_memory()
    progress("quantize", precision)
    quantize_graph(whole, path, precision)
    shutil.rmtree(whole.parent)


def compare(draft: Draft, progress: Progress) -> Comparison:
    """The report on the graph, which may say that it did not pass; written beside it, too."""
    options = draft.job.options
    specs, is_fused = draft.model.decoder.state_specs(), draft.job.is_installed
    graph = GraphSession(draft.engine / GRAPH, specs, is_fused=is_fused, figures=draft.figures)
    tolerance = TOLERANCES[options.precision]
    scenarios, perplexity, experts = compare_graph(
        graph, draft.model, tolerance=tolerance, report=lambda detail: progress("compare", detail)
    )
    figures = []
    if draft.figures:
        progress("compare", "figures")
        figures = compare_figures(graph, draft.model, tolerance)
    comparison = Comparison(
        model=options.model,
        engine=options.engine,
        precision=options.precision,
        request=draft.job.request,
        artifact=hash_artifact(sorted(draft.engine.glob(f"{GRAPH}*"))),
        reference="PyTorch, float32, full sequences",
        ran_on="ONNX Runtime on the CPU",
        scenarios=tuple(scenarios),
        perplexity=perplexity,
        experts=experts,
        figures=tuple(figures),
    )
    write_comparison(comparison, draft.engine)
    return comparison


def deliver_plan(draft: Draft, comparison: Comparison, progress: Progress) -> Outcome:
    """Compile the compared graph, and put the plan in the engine's layout where the job wants it."""
    options = draft.job.options
    assert options.engine != "onnxruntime"
    if options.precision != "fp32":
        build_graph(draft, "float16", progress)
    progress("plan", f"{options.engine}: a decode and a prefill profile")
    plan = draft.engine / PLAN
    chunk = min(PLAN_CHUNK, draft.model.decoder.config.max_length // 2)
    profiles = decode_and_prefill(max_batch=PLAN_BATCH, prefill_batch=PLAN_PREFILL_BATCH, chunk=chunk)
    stamp = build_plan(draft.engine / GRAPH, plan, profiles=profiles, target=options.engine)
    ran_on = f"{comparison.ran_on}, the plan's graph in float32; the plan itself has not run"
    report = comparison.model_copy(update={"artifact": hash_artifact([plan]), "ran_on": ran_on})
    write_comparison(report, draft.engine)
    stamps = {options.engine: stamp.version, "compute_capability": stamp.compute_capability}
    write_manifest(manifest_for(draft, PLAN, stamps), draft.engine / MANIFEST)
    for path in draft.engine.glob(f"{GRAPH}*"):
        path.unlink()
    with atomic_directory(options.plan_directory, replace=True) as fresh:
        for path in draft.engine.iterdir():
            path.rename(fresh / path.name)
    return Outcome(options.plan_directory, report, is_new=True, note=PLAN_NOTE)


def manifest_for(draft: Draft, graph: GraphName, stamps: Mapping[str, str]) -> Manifest:
    """What the engine needs to run `graph`; `stamps` are what binds it beside the libraries."""
    job, config, dtypes = draft.job, draft.model.decoder.config, input_dtypes(draft.engine / GRAPH)
    states = [
        {"kind": s.kind, "past": s.past, "present": s.present, "shape": s.shape, "dtype": dtypes[s.past]}
        for s in draft.model.decoder.state_specs()
    ]
    return Manifest(
        format="trident-engine/2",
        model=job.options.model,
        engine=job.options.engine,
        precision=job.options.precision,
        graph=graph,
        source=job.source,
        stamps=library_stamps(job.options.engine) | dict(stamps),
        vocab_size=config.vocab_size,
        max_length=config.max_length,
        states=tuple(StateTensor.model_validate(state) for state in states),
        special_tokens=draft.model.special_tokens,
        sampling=job.sampling,
        extra_outputs=draft.figures,
    )

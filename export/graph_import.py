"""`trident import` of a stateless ONNX graph: read → copy → prove → install, as it is."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from export.comparison import hash_artifact
from export.formats.detect import hash_files
from export.formats.onnx_graph import GraphFile, read_graph
from export.formats.weight_files import GRAPH
from export.graph_config import graph_config, require_no_other
from export.graph_proof import prove_graph
from export.graph_report import GraphOutcome, GraphReport, installed_report, write_report
from export.installed import latest_version
from export.manifest import SourceStamp
from export.pipeline import Progress, check_name
from export.repository import install_version
from export.stamps import recipe_hash
from export.workspace import require_disk, workspace

DISK_FACTOR = 2  # the copy, and room for what others write


@dataclass(frozen=True)
class GraphOptions:
    """What to import and where to; `example` is a .npz to prove the graph with, one array per input."""

    model: str
    source: Path
    repository: Path = Path("model_repository")
    example: Path | None = None
    force: bool = False


def import_graph(options: GraphOptions, progress: Progress) -> GraphOutcome:
    """Install one stateless graph, byte for byte; what is installed already from equal inputs stays.

    Raises ExportError in one sentence. Nothing half-done stays behind, whatever happens.
    """
    check_name(options.model)
    graph = read_graph(options.source)
    target = options.repository / options.model
    require_no_other(target)
    source = stamp_graph(graph, options.example)
    request = _request_hash(options.model, source)
    current = target / str(latest_version(target))
    report = installed_report(current)
    if report is not None and report.request == request and not options.force:
        return GraphOutcome(current, report, is_new=False)
    with workspace(options.repository, options.model) as work:
        return _install(options, graph, request, source, work, progress)


def stamp_graph(graph: GraphFile, example: Path | None = None) -> SourceStamp:
    """Name and hash of everything that the graph's answers, and their proof, follow from."""
    files = [*graph.files, *([example] if example else [])]
    return SourceStamp(file=graph.path.resolve().name, format="onnx", sha256=hash_files(files))


def _install(
    options: GraphOptions, graph: GraphFile, request: str, source: SourceStamp, work: Path, progress: Progress
) -> GraphOutcome:
    size = sum(path.stat().st_size for path in graph.files)
    require_disk(work, DISK_FACTOR * size)
    directory = work / "graph"
    directory.mkdir()
    progress("read", str(graph.path))
    for path in graph.files:
        shutil.copyfile(path, directory / (GRAPH if path == graph.path else path.name))
    progress("compare", "optimised, twice, in rows")
    proof = prove_graph(directory / GRAPH, size, options.example)
    report = GraphReport(
        model=options.model,
        request=request,
        source=source,
        artifact=hash_artifact(sorted(directory.iterdir())),
        reference="ONNX Runtime without optimisations",
        checks=proof.checks,
        notes=proof.notes,
    )
    report.require_passed()
    write_report(report, directory)
    progress("install", str(options.repository))
    options.repository.mkdir(parents=True, exist_ok=True)
    config = graph_config(options.model, proof.inputs, proof.outputs, batches=proof.batches)
    installed = install_version(options.repository / options.model, directory, config)
    return GraphOutcome(installed.directory, report, is_new=True)


def _request_hash(model: str, source: SourceStamp) -> str:
    request = {
        "model": model,
        "source": source.model_dump(),
        "onnxruntime": version("onnxruntime"),
        "recipe": recipe_hash(),
    }
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()

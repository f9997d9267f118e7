"""Which file of a directory is its graph, and which directory a graph belongs to."""

from pathlib import Path

from export.formats.genai import read_genai_config
from export.formats.weight_files import GRAPH

HUB_FOLDER = "onnx"  # a hub's directory keeps its graphs there, and everything else above
TOKENIZER = "tokenizer.json"


def find_graph(path: Path) -> Path | None:
    """The graph that a directory is about; None if it is not about a graph. A file is one itself.

    That is the one which onnxruntime-genai is told of, or model.onnx, or the only one, there or in `onnx`.
    """
    if not path.is_dir():
        return path
    genai = read_genai_config(path)
    return genai.graph if genai else _only_graph(path) or _only_graph(path / HUB_FOLDER)


def _only_graph(directory: Path) -> Path | None:
    found = sorted(directory.glob("*.onnx"))
    return directory / GRAPH if directory / GRAPH in found else found[0] if len(found) == 1 else None


def home_of(graph: Path) -> Path:
    """The directory of the configuration and the tokenizer that belong to a graph."""
    is_apart = graph.parent.name == HUB_FOLDER and not (graph.parent / TOKENIZER).is_file()
    return graph.parent.parent if is_apart else graph.parent

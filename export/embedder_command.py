"""How a command makes an embedder; what is heavy loads when it is asked for."""

from pathlib import Path

from export.console import StageReporter, print_graph_outcome
from export.embedder_options import EmbedderOptions
from export.refusals import one_sentence


def is_encoder(path: Path) -> bool:
    """Whether `path` is an encoder of texts, which has no language model to serve."""
    # Here, because it loads torch.
    from export.formats.text_encoder import is_text_encoder

    return path.is_dir() and is_text_encoder(path)


def run_embedder(command: str, options: EmbedderOptions) -> None:
    """Export, and show what was measured; a failure is one sentence of `command`."""
    with one_sentence(command):
        from export.embedder import export_embedder

        with StageReporter() as reporter:
            outcome = export_embedder(options, reporter.enter)
        print_graph_outcome(outcome)

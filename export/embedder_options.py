"""What an embedder is asked for; light enough to be read at every start."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class EmbedderOptions:
    """Whose embedder, and where to; `pooling` None is the encoder's own, and the mean for a decoder."""

    model: str
    source: Path | None = None
    pooling: Literal["mean", "last"] | None = None
    max_length: int | None = None
    repository: Path = Path("model_repository")
    force: bool = False

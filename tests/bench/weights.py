"""One model's weights in the form that each contender reads; what is missing is made once."""

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from export.sources import find_source
from tests.bench.gguf_files import BLOCK_TYPES, gguf_from_gguf, gguf_from_llama
from tests.bench.reference import llama_directory
from tests.export.three_doors import directory_from_gguf

HERE = Path(__file__).parent
MODELS = HERE / "models"
REFERENCE = "llama-32m"
NAMES = ("smollm2", REFERENCE)
REFUSED = 1  # how the export ends when it says no


class RefusedError(Exception):
    """A precision that costs this model more quality than the proof allows, so that nobody can serve it."""


@dataclass(frozen=True)
class Weights:
    """The weights of `model`, one of NAMES."""

    model: str

    def source(self) -> Path:
        """What all forms are made from: a Hugging Face directory, or the packaged GGUF."""
        return llama_directory(MODELS / REFERENCE) if self.is_reference else find_source(self.model, None)

    @property
    def is_reference(self) -> bool:
        return self.model == REFERENCE

    def installed(self, precision: str) -> Path:
        """The engine's version directory, as `trident export` installs it; RefusedError where it doesn't."""
        repository = self.repository(precision)
        command = [sys.executable, "-m", "export", "--model", self.model, "--precision", precision]
        known = ["--source", str(self.source())] if self.is_reference else []
        done = subprocess.run([*command, *known, "--repository", str(repository)])
        if done.returncode == REFUSED:
            raise RefusedError(f"{self.model} {precision} is left out: its export was refused")
        done.check_returncode()
        versions = (repository / f"{self.model}_engine").glob("[0-9]*")
        return max(versions, key=lambda path: int(path.name))

    def repository(self, precision: str) -> Path:
        """A model repository of its own: a server waits for every model that it finds."""
        return MODELS / f"{self.model}-{precision}"

    def gguf(self, precision: str) -> dict[str, Path]:
        """llama.cpp's files of that bit width, by the name of their type; the packaged one as it is."""
        files = {}
        for block_type in BLOCK_TYPES[precision]:
            path = MODELS / "gguf" / f"{self.model}.{block_type}.gguf"
            if not path.exists():
                write = gguf_from_llama if self.is_reference else gguf_from_gguf
                write(self.source(), path, block_type)
            files[block_type] = path
        if precision == "int4" and not self.is_reference:
            files["Q4_1 as packaged"] = self.source()
        return files

    def huggingface(self) -> Path:
        """A Hugging Face directory in float32."""
        source = self.source()
        return source if source.is_dir() else directory_from_gguf(source, MODELS / f"{self.model}-directory")

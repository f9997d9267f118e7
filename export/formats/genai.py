"""Folders of onnxruntime-genai: `genai_config.json` names the graph, its tensors and the tokens that end."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from export.errors import ExportError
from export.formats.fields import Fields
from export.formats.weight_files import MAX_NAME, read_json

GENAI_CONFIG = "genai_config.json"
MAX_LENGTH = 1 << 24

# Parts of a model that are no decoder of text, and ways to run one that are not ours.
FOREIGN_PARTS = {
    "encoder": "an encoder",
    "vision": "a vision model",
    "speech": "a speech model",
    "embedding": "an embedding model of its own",
}
PIPELINE, WINDOW = "pipeline", "sliding_window"


@dataclass(frozen=True)
class TensorNames:
    """What a decoder's graph calls its tensors; `%d` is the number of a layer."""

    input_ids: str = "input_ids"
    attention_mask: str = "attention_mask"
    position_ids: str = "position_ids"
    past_key_names: str = "past_key_values.%d.key"
    past_value_names: str = "past_key_values.%d.value"
    logits: str = "logits"
    present_key_names: str = "present.%d.key"
    present_value_names: str = "present.%d.value"


INPUTS = ("input_ids", "attention_mask", "position_ids", "past_key_names", "past_value_names")
OUTPUTS = ("logits", "present_key_names", "present_value_names")


@dataclass(frozen=True)
class GenAIConfig:
    """What `genai_config.json` says of a decoder; a size that it does not tell is None."""

    graph: Path
    names: TensorNames
    max_length: int
    num_kv_heads: int | None
    head_dim: int | None
    vocab_size: int | None
    bos: int | None
    eos: tuple[int, ...]
    pad: int | None


def read_genai_config(directory: Path) -> GenAIConfig | None:
    """The configuration in `directory`, None if there is none.

    Raises ExportError in one sentence, also for what is inside and not served.
    """
    path = directory / GENAI_CONFIG
    if not path.is_file():
        return None
    model = Fields(read_json(path), str(path)).section("model")
    decoder = model.section("decoder")
    _require_served(model, decoder)
    return GenAIConfig(
        graph=_graph(directory, decoder),
        names=_names(decoder),
        max_length=_size(model, "context_length"),
        num_kv_heads=_optional_size(decoder, "num_key_value_heads"),
        head_dim=_optional_size(decoder, "head_size"),
        vocab_size=_optional_size(model, "vocab_size"),
        bos=_optional_token(model, "bos_token_id"),
        eos=_ends(model),
        pad=_optional_token(model, "pad_token_id"),
    )


def _require_served(model: Fields, decoder: Fields) -> None:
    parts = [what for name, what in FOREIGN_PARTS.items() if name in model]
    if parts:
        raise ExportError(f"{model.file} names {' and '.join(parts)}: served are decoders of text alone")
    if PIPELINE in decoder:
        raise ExportError(f"{decoder.file} is a pipeline of several graphs; a decoder in one graph is served")
    window = decoder.section(WINDOW)
    slides = window.flag("slide_key_value_cache", True) or window.flag("slide_inputs", True)
    if window.values and slides:
        raise ExportError(f"{window.file} slides its cache along; caches of the whole context are served")


def _graph(directory: Path, decoder: Fields) -> Path:
    name = decoder.text("filename")
    if Path(name).name != name or len(name) > MAX_NAME:
        raise ExportError(f"{decoder.file}: filename is {name[:80]!r}; the graph must lie beside it")
    path = directory / name
    if not path.is_file():
        raise ExportError(f"{path} is missing, though {GENAI_CONFIG} names it: fetch it again")
    return path


def _names(decoder: Fields) -> TensorNames:
    inputs, outputs, standard = decoder.section("inputs"), decoder.section("outputs"), TensorNames()
    names = {role: inputs.text(role, getattr(standard, role)) for role in INPUTS}
    names |= {role: outputs.text(role, getattr(standard, role)) for role in OUTPUTS}
    for role, name in names.items():
        if name.count("%d") != role.endswith("_names"):
            number = "with %d for the layer" if role.endswith("_names") else "without %d"
            raise ExportError(f"{decoder.file}: {role} is {name[:80]!r}; a name {number} is needed")
    return TensorNames(**names)


def _size(fields: Fields, name: str) -> int:
    value = fields.integer(name)
    if not 1 <= value <= MAX_LENGTH:
        raise ExportError(f"{fields.file}: {name} is {value}; allowed are 1 to {MAX_LENGTH}")
    return value


def _optional_size(fields: Fields, name: str) -> int | None:
    return _size(fields, name) if name in fields else None


def _optional_token(fields: Fields, name: str) -> int | None:
    return _token(fields, name, fields.integer(name)) if name in fields else None


def _ends(model: Fields) -> tuple[int, ...]:
    """One token or a list of them."""
    given: Any = model.values.get("eos_token_id")
    ends = given if isinstance(given, list) else [] if given is None else [given]
    return tuple(_token(model, "eos_token_id", end) for end in ends)


def _token(fields: Fields, name: str, value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_LENGTH:
        raise ExportError(f"{fields.file}: {name} is {str(value)[:80]!r}, which is no token")
    return value

"""Checkpoints that must be refused: small sound ones with one thing made wrong, and attacks."""

import io
import json
import pickle
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from tests.export.ggml_files import D_FF, LAYERS, WIDTH, TinyGgml
from tests.export.hf_models import CASES, write_model
from tests.export.retnet_models import RetNet
from tests.export.tiny_gguf import TinyLlama

HUGE = (1 << 31, 1 << 40, (1 << 64) - 1)
MODEL, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"
MARKER = "code-ran"
TINY_GGUF = TinyLlama(layers=1, d_ff=32)


@dataclass(frozen=True)
class Hostile:
    """Files by relative name; `opened` is the one to import, or the directory if it is empty."""

    name: str
    files: dict[str, bytes] = field(repr=False)
    opened: str = ""

    def write(self, directory: Path) -> Path:
        """Write them below `directory`; returns what is to be imported."""
        for name, content in self.files.items():
            (directory / name).write_bytes(content)
        return directory / self.opened


def hugging_face() -> dict[str, bytes]:
    """A sound directory by file."""
    case = next(case for case in CASES if case.name == "grouped")
    with tempfile.TemporaryDirectory() as name:
        directory = write_model(Path(name), case.make(num_hidden_layers=1, intermediate_size=32, head_dim=32))
        return {path.name: path.read_bytes() for path in directory.iterdir()}


def cuts(name: str, whole: bytes, count: int = 30) -> Iterator[tuple[str, bytes]]:
    """`whole` cut at many places, more of them near its beginning."""
    for index in range(count):
        yield f"{name} cut to {index}/{count}", whole[: int(len(whole) * (index / count) ** 3)]


def put(data: bytes, place: int, form: str, value: int | float) -> bytes:
    """`data` with one number replaced."""
    packed = struct.pack(f"<{form}", value)
    return data[:place] + packed + data[place + len(packed) :]


def gguf_inputs() -> Iterator[Hostile]:
    whole, tensors = SOUND["gguf"]().files["x.gguf"], TINY_GGUF.tensors()
    for value in (np.nan, np.inf, -np.inf):
        odd = TinyLlama(layers=1, d_ff=32, extra={"output_norm.weight": np.full(128, value, np.float32)})
        yield Hostile(f"weights of {value}", {"x.gguf": written(odd)}, "x.gguf")
    for what, data in gguf_bytes(whole, tensors):
        yield Hostile(what, {"x.gguf": data}, "x.gguf")


def written(tiny: TinyLlama) -> bytes:
    with tempfile.TemporaryDirectory() as name:
        return tiny.write(Path(name) / "x").read_bytes()


def gguf_bytes(whole: bytes, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    yield from cuts("gguf", whole)
    for version in (0, 1, 4, 1 << 24):
        yield f"version {version}", put(whole, 4, "I", version)
    for place, what in ((8, "tensors"), (16, "keys")):
        for count in (0, *HUGE):
            yield f"{count} {what}", put(whole, place, "Q", count)
    for key in ("embedding_length", "block_count", "attention.head_count", "feed_forward_length"):
        for value in (0, 3, (1 << 32) - 1):
            place = whole.index(f"llama.{key}".encode() + b"\x04\0\0\0") + len(f"llama.{key}") + 4
            yield f"{key} {value}", put(whole, place, "I", value)
    for number, name in enumerate(tensors):
        place = whole.index(struct.pack("<Q", len(name)) + name.encode()) + 8 + len(name)
        dimensions = tensors[name].ndim
        kind = place + 4 + 8 * dimensions
        for value in (0, 5, 1 << 31):
            yield f"{name} of {value} dimensions", put(whole, place, "I", value)
        for value in (0, *HUGE):
            yield f"{name} with {value} columns", put(whole, place + 4, "Q", value)
        yield f"{name} of an unknown type", put(whole, kind, "I", 999)
        for value in (1, *HUGE, *([0] if number else [])):
            yield f"{name} at {value}", put(whole, kind + 4, "Q", value)


def ggml_tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {
        "tok_embeddings.weight": (300, WIDTH),
        "output.weight": (300, WIDTH),
    }
    for layer in range(LAYERS):
        prefix = f"layers.{layer}"
        shapes |= {f"{prefix}.attention.w{part}.weight": (WIDTH, WIDTH) for part in "qkvo"}
        shapes |= {f"{prefix}.{name}.weight": (WIDTH,) for name in ("attention_norm", "ffn_norm")}
        shapes |= {f"{prefix}.feed_forward.w{part}.weight": (D_FF, WIDTH) for part in "13"}
        shapes[f"{prefix}.feed_forward.w2.weight"] = (WIDTH, D_FF)
    shapes["norm.weight"] = (WIDTH,)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def ggml_inputs() -> Iterator[Hostile]:
    for what, data in ggml_bytes(SOUND["ggml"]().files["x.bin"], ggml_tensors()):
        yield Hostile(what, {"x.bin": data}, "x.bin")


def ggml_bytes(whole: bytes, tensors: dict[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    yield from cuts("ggml", whole)
    for index, what in enumerate(("tokens", "width", "multiple", "heads", "layers", "rotated")):
        for value in (0, -1, (1 << 31) - 1):
            yield f"{what} {value}", put(whole, 8 + 4 * index, "i", value)
    for name in tensors:
        dimensions = tensors[name].ndim
        place = whole.index(name.encode()) - 12 - 4 * dimensions
        for offset, what in enumerate(("dimensions", "letters", "type", "columns", "rows")[: 3 + dimensions]):
            for value in (-1, (1 << 31) - 1):
                yield f"{name}: {what} {value}", put(whole, place + 4 * offset, "i", value)


def safetensors_inputs() -> Iterator[Hostile]:
    base = hugging_face()
    whole = base[MODEL]
    length = struct.unpack("<Q", whole[:8])[0]
    header, data = json.loads(whole[8 : 8 + length]), whole[8 + length :]
    for what, content in cuts("safetensors", whole):
        yield Hostile(what, base | {MODEL: content})
    for value in (0, 1, length - 1, length + 1, 100_000_001, *HUGE):
        yield Hostile(f"a header of {value}", base | {MODEL: put(whole, 0, "Q", value)})
    for name in header:
        if name != "__metadata__":
            for what, change in header_changes(header[name]):
                changed = json.dumps(header | {name: header[name] | change}).encode()
                content = struct.pack("<Q", len(changed)) + changed + data
                yield Hostile(f"{name}: {what}", base | {MODEL: content})
    for what, change in tensor_changes(load(whole)):
        yield Hostile(what, base | {MODEL: save(change)})


def header_changes(entry: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    begin, end = entry["data_offsets"]
    yield "overlaps", {"data_offsets": [max(begin - 4, 0), end] if begin else [4, end]}
    yield "ends before it begins", {"data_offsets": [end, begin]}
    yield "lies beyond the file", {"data_offsets": [begin + (1 << 40), end + (1 << 40)]}
    yield "has a negative place", {"data_offsets": [-4, end]}
    yield "has a larger shape", {"shape": [entry["shape"][0] + 1, *entry["shape"][1:]]}
    yield "has an overflowing shape", {"shape": [1 << 62, 1 << 62]}
    yield "has an unknown type", {"dtype": "F31"}


def tensor_changes(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    for name, tensor in tensors.items():
        odd = tensor.clone()
        odd.flatten()[0] = torch.nan
        yield f"NaN in {name}", tensors | {name: odd}
        yield f"no {name}", {other: tensors[other] for other in tensors if other != name}
        yield f"{name} transposed and longer", tensors | {name: torch.zeros(3, 5)}
    yield "a tensor too many", tensors | {"model.layers.7.odd": torch.zeros(2)}


def config_inputs() -> Iterator[Hostile]:
    base = hugging_face()
    config = json.loads(base[CONFIG])
    sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    for name in (*sizes, "num_key_value_heads", "head_dim", "max_position_embeddings"):
        for value in (0, -1, 1 << 40, 1 << 80, "64", 1.5, [64], True):
            yield Hostile(f"{name} {value!r}", base | {CONFIG: json.dumps(config | {name: value}).encode()})
    for name in ("rms_norm_eps", "rope_parameters", "model_type", "hidden_act", "tie_word_embeddings"):
        for value in (-1, "x", [1], float("nan")):
            yield Hostile(f"{name} {value!r}", base | {CONFIG: json.dumps(config | {name: value}).encode()})
    texts = (b"", b"{", b"[]", b"null", b"\xff\xfe{}", b"[" * 100_000, b'{"a":' * 100_000, b'"' + b"a" * 99)
    for number, text in enumerate(texts):
        yield Hostile(f"config {number}", base | {CONFIG: text})
        yield Hostile(f"tokenizer {number}", base | {"tokenizer.json": text})
        yield Hostile(f"tokenizer config {number}", base | {"tokenizer_config.json": text})
    for value in (7, [], {"content": 3}, "<none>", {"a": "b"}, 1.5):
        text = json.dumps({"eos_token": value}).encode()
        yield Hostile(f"end token {value!r}", base | {"tokenizer_config.json": text})
    for value in (-1, 300, "2", [2, 1 << 40], [[2]], 1.5):
        text = json.dumps({"eos_token_id": value}).encode()
        yield Hostile(f"end id {value!r}", base | {"generation_config.json": text})


def retnet() -> dict[str, bytes]:
    """A sound RetNet by file, as its port to transformers saves it."""
    with tempfile.TemporaryDirectory() as name:
        directory = RetNet(layers=1, inner=32).write(Path(name), "port")
        return {path.name: path.read_bytes() for path in directory.iterdir()}


def retnet_inputs() -> Iterator[Hostile]:
    base = retnet()
    config = json.loads(base[CONFIG])
    parts = ("embed_dim", "value_embed_dim", "retention_heads", "ffn_embed_dim", "layers")
    for name in ("vocab_size", "max_target_positions", *(f"decoder_{part}" for part in parts)):
        for value in (0, -1, 1 << 40, 1 << 80, "64", 1.5, [64], True):
            yield Hostile(f"{name} {value!r}", base | {CONFIG: json.dumps(config | {name: value}).encode()})
    flags = ("layernorm_embedding", "no_scale_embedding", "use_lm_decay", "tie_word_embeddings", "use_glu")
    for name in (*flags, "layernorm_eps", "activation_fn", "moe_freq"):
        for value in (-1, "x", [1], float("nan")):
            yield Hostile(f"{name} {value!r}", base | {CONFIG: json.dumps(config | {name: value}).encode()})
    tensors = load(base[MODEL])
    for name in (f"model.retnet_rel_pos.{buffer}" for buffer in ("decay", "angle")):
        for value in (torch.tensor(3.0), torch.zeros(0), tensors[name] * torch.nan, 2 * tensors[name]):
            yield Hostile(f"{name} {value}"[:60], base | {MODEL: save(tensors | {name: value})})
    twice = tensors | {"decoder.layer_norm.weight": tensors["model.layer_norm.weight"].clone()}
    yield Hostile("one tensor by two names", base | {MODEL: save(twice)})


def index_inputs() -> Iterator[Hostile]:
    base = hugging_face()
    tensors = load(base.pop(MODEL))
    places = (
        "../model.safetensors",
        "/etc/passwd",
        "a/b.safetensors",
        INDEX,
        "config.json",
        "",
        ".",
        "..",
        "gone",
    )
    for place in (*places, "gone.safetensors", 7, None, ["x"], "\0.safetensors", "a" * 5000 + ".safetensors"):
        index = {"weight_map": dict.fromkeys(tensors, place)}
        yield Hostile(f"a shard {str(place)[:40]!r}", base | {INDEX: json.dumps(index).encode()})
    for text in (b"", b"{}", b"[]", b'{"weight_map": 1}', b'{"weight_map": {}}'):
        yield Hostile(f"index {text!r}", base | {INDEX: text})
    one, two = ("s-1.safetensors", "s-2.safetensors")
    index = {"weight_map": {name: (one, two)[number % 2] for number, name in enumerate(tensors)}}
    both = {one: save(tensors), two: save(tensors), INDEX: json.dumps(index).encode()}
    yield Hostile("the same tensors in two shards", base | both)


class Payload:
    """Unpickled by a careless reader, it writes a file."""

    def __reduce__(self) -> tuple[Any, ...]:
        return exec, (f"open({MARKER!r}, 'w').close()",)


def saved(value: object, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def rezipped(
    data: bytes, change: Callable[[str, bytes], list[tuple[str, bytes]]], compression: int = 0
) -> bytes:
    """The archive with its entries changed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as old, zipfile.ZipFile(buffer, "w", compression) as new:
        for name in old.namelist():
            for entry, content in change(name, old.read(name)):
                new.writestr(entry, content)
    return buffer.getvalue()


def torch_inputs() -> Iterator[Hostile]:
    base = hugging_face()
    tensors = load(base.pop(MODEL))
    for what, content in torch_bytes(tensors):
        yield Hostile(what, base | {"pytorch_model.bin": content})


def torch_bytes(tensors: dict[str, torch.Tensor]) -> Iterator[tuple[str, bytes]]:
    whole = saved(tensors)
    yield from cuts("torch", whole)
    yield "a payload", saved({"x": Payload()})
    yield "a payload among tensors", saved(tensors | {"x": Payload()})
    yield "a bare pickle with a payload", pickle.dumps({"x": Payload()})
    yield "a legacy file", saved(tensors, _use_new_zipfile_serialization=False)
    yield "a legacy payload", saved({"x": Payload()}, _use_new_zipfile_serialization=False)
    yield "a list", saved(list(tensors.values()))
    yield "a number among tensors", saved(tensors | {"x": 3})
    yield "a sparse tensor", saved(tensors | {"x": torch.eye(3).to_sparse()})
    yield "integers", saved({name: tensor.to(torch.int32) for name, tensor in tensors.items()})
    yield "NaN", saved(tensors | {"model.norm.weight": torch.full((64,), torch.nan)})
    yield "TorchScript", rezipped(whole, lambda n, c: [(n, c), (f"{n.split('/')[0]}/code/x.py", b"exit()")])
    yield (
        "constants",
        rezipped(
            whole, lambda n, c: [(n, c), (f"{n.split('/')[0]}/constants.pkl", b"")][: 2 - ("data/" in n)]
        ),
    )
    yield "compressed", rezipped(whole, lambda n, c: [(n, c)], zipfile.ZIP_DEFLATED)
    yield (
        "a bomb",
        rezipped(whole, lambda n, c: [(n, bytes(1 << 26) if "data/" in n else c)], zipfile.ZIP_DEFLATED),
    )
    yield "no pickle", rezipped(whole, lambda n, c: [] if n.endswith(".pkl") else [(n, c)])
    yield "short storages", rezipped(whole, lambda n, c: [(n, c[:8] if "data/" in n else c)])
    yield "no storages", rezipped(whole, lambda n, c: [] if "/data/" in n else [(n, c)])
    yield (
        "two pickles",
        rezipped(whole, lambda n, c: [(n, c)] + ([("b/data.pkl", c)] if n.endswith(".pkl") else [])),
    )


INPUTS: dict[str, Callable[[], Iterator[Hostile]]] = {
    "gguf": gguf_inputs,
    "ggml": ggml_inputs,
    "safetensors": safetensors_inputs,
    "config": config_inputs,
    "index": index_inputs,
    "torch": torch_inputs,
    "retnet": retnet_inputs,
}


def sound_torch() -> Hostile:
    base = hugging_face()
    tensors = load(base.pop(MODEL))
    return Hostile("sound", base | {"pytorch_model.bin": saved(tensors)})


def sound_shards() -> Hostile:
    base = hugging_face()
    tensors = load(base.pop(MODEL))
    parts = {f"s-{number}.safetensors": {name: tensors[name]} for number, name in enumerate(tensors)}
    index = {"weight_map": {name: part for part, held in parts.items() for name in held}}
    return Hostile(
        "sound",
        base | {part: save(held) for part, held in parts.items()} | {INDEX: json.dumps(index).encode()},
    )


# What the inputs are made of; without its one fault each would be imported.
SOUND: dict[str, Callable[[], Hostile]] = {
    "gguf": lambda: Hostile("sound", {"x.gguf": written(TINY_GGUF)}, "x.gguf"),
    "ggml": lambda: Hostile("sound", {"x.bin": TinyGgml().bytes(ggml_tensors())}, "x.bin"),
    "safetensors": lambda: Hostile("sound", hugging_face()),
    "config": lambda: Hostile("sound", hugging_face()),
    "index": sound_shards,
    "torch": sound_torch,
    "retnet": lambda: Hostile("sound", retnet()),
}

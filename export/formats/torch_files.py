"""Tensors in files of torch.save, read by `torch.load(weights_only=True)` and in no other way."""

import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from export.errors import ExportError
from export.formats.tensors import TensorInfo

FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WRAPPINGS = ("state_dict", "model")  # the keys under which trainers save the tensors
PICKLE = "data.pkl"
MAX_PICKLE_BYTES = 64 << 20


class TorchFiles:
    """One file, or the shards of one checkpoint; each holds a dict of tensors, and no tensor is in two."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        self._infos: dict[str, TensorInfo] = {}
        for file in files:
            for name, tensor in load_tensors(file).items():
                if name in self._infos:
                    raise ExportError(f"{name} is in {self._file_of[name].name} and in {file.name}")
                self._file_of[name] = file
                self._infos[name] = TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """See Tensors.infos."""
        return self._infos

    def read(self, name: str) -> Tensor:
        """See Tensors.read. The file is mapped for this one tensor, so that no more of it is in memory."""
        tensor = load_tensors(self._file_of[name])[name]
        if tensor.dtype not in FLOATS:
            raise ExportError(f"{name} is stored as {self._infos[name].dtype}; weights are read from floats")
        return torch.empty(tensor.shape).copy_(tensor)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors in `path` by name, mapped and not read. ExportError for whatever is not that."""
    require_plain_archive(path)
    try:
        value = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # whatever a damaged or hostile pickle makes the reader raise
        reason = str(error).partition("\n")[0].partition("(1)")[0].strip()
        raise ExportError(f"{path} holds more than tensors, or is damaged: {reason}") from error
    for wrapping in WRAPPINGS:
        if isinstance(value, dict) and isinstance(value.get(wrapping), dict):
            value = value[wrapping]
    if not isinstance(value, dict):
        raise ExportError(f"{path} holds a {type(value).__name__}; a dict of tensors is needed")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            raise ExportError(f"{path}: {str(name)[:80]!r} is a {type(tensor).__name__}, not a plain tensor")
    return value


def require_plain_archive(path: Path) -> None:
    """ExportError unless `path` is an uncompressed archive with one pickle of data and none of code."""
    if not zipfile.is_zipfile(path):
        raise ExportError(
            f"{path} is no archive as torch.save writes since PyTorch 1.6; save it anew where you trust it"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, ValueError, OSError, RuntimeError) as error:
        raise ExportError(f"{path} is cut off or damaged ({error}): fetch it again") from error
    names = [entry.filename.rpartition("/")[2] for entry in entries]
    if "constants.pkl" in names or any("/code/" in entry.filename for entry in entries):
        raise ExportError(f"{path} is TorchScript, which holds code; save its state_dict() instead")
    if names.count(PICKLE) != 1:
        raise ExportError(f"{path} holds {names.count(PICKLE)} files {PICKLE}; one is needed")
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ExportError(f"{path}: {entry.filename[:80]!r} is compressed; torch.save does not do that")
        if entry.filename.endswith(PICKLE) and entry.file_size > MAX_PICKLE_BYTES:
            raise ExportError(f"{path}: {PICKLE} has {entry.file_size} bytes; at most {MAX_PICKLE_BYTES}")

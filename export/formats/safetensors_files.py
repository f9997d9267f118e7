"""Tensors in safetensors files: the library checks header, offsets and lengths."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from export.errors import ExportError
from export.formats.tensors import TensorInfo

FLOATS = ("F64", "F32", "F16", "BF16")


class SafetensorsFiles:
    """One file, or the shards of one checkpoint; no tensor may be in two of them."""

    def __init__(self, files: Sequence[Path]) -> None:
        self._file_of: dict[str, Path] = {}
        self._infos: dict[str, TensorInfo] = {}
        for file in files:
            for name, info in _read_infos(file).items():
                if name in self._infos:
                    raise ExportError(f"{name} is in {self._file_of[name].name} and in {file.name}")
                self._file_of[name], self._infos[name] = file, info

    @property
    def infos(self) -> Mapping[str, TensorInfo]:
        """See Tensors.infos."""
        return self._infos

    def read(self, name: str) -> Tensor:
        """See Tensors.read. The file is mapped for this one tensor, so that no more of it is in memory."""
        info = self._infos[name]
        if info.dtype not in FLOATS:
            raise ExportError(
                f"{name} is stored as {info.dtype}; weights are read from {', '.join(FLOATS)}: "
                "quantized checkpoints are not, but their originals are"
            )
        try:
            with safe_open(self._file_of[name], framework="pt") as file:
                return torch.empty(info.shape).copy_(file.get_tensor(name))
        except (SafetensorError, OSError) as error:
            raise _damaged(self._file_of[name], error) from error


def _read_infos(path: Path) -> dict[str, TensorInfo]:
    try:
        with safe_open(path, framework="pt") as file:
            slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
            return {name: TensorInfo(tuple(s.get_shape()), s.get_dtype()) for name, s in slices.items()}
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ExportError:
    return ExportError(f"{path} is cut off or damaged ({error}): fetch it again")

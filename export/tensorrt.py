"""Plans: a graph in standard operators compiled by TensorRT or TensorRT-RTX.

Polygraphy settles once per process which of the two it drives, so every plan gets a process of its own.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from export.errors import ExportError
from export.onnx_files import staged

Target = Literal["tensorrt", "tensorrt-rtx"]
MODULES: dict[Target, str] = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
OTHERWISE = "the ONNX graph runs without it: --engine onnxruntime"
MOST_VERIFIED = 16  # tokens of a draft and the one before it
LAST_LINES = 15  # of the builder's log, in an error
# Warnings after which the builder goes on, to a plan that answers wrongly or not at all.
FATAL = ("unused input", "not self-consistent")


@dataclass(frozen=True)
class PlanProfile:
    """The shapes that one set of kernels is chosen for: rows B, tokens T and logits K of a row.

    Each is (least, usual, most).
    """

    batch: tuple[int, int, int]
    tokens: tuple[int, int, int]
    logits: tuple[int, int, int] = (1, 1, 1)


@dataclass(frozen=True)
class PlanStamp:
    """What a plan is locked to, and what it was built of.

    `compute_capability` is the GPU generation, such as `9.0`; `any` where the plan is finished on the GPU
    that loads it. `layers` counts the parsed network's layers by kind, such as ATTENTION_INPUT.
    """

    library: str
    version: str
    compute_capability: str
    layers: Mapping[str, int]


def decode_and_prefill(*, max_batch: int, prefill_batch: int, chunk: int) -> tuple[PlanProfile, PlanProfile]:
    """One new token for up to `max_batch` rows, and up to `chunk` tokens for a few rows.

    In the second each of a few tokens may be asked for its logits, so that drafts can be verified.
    """
    decode = PlanProfile((1, max(1, max_batch // 2), max_batch), (1, 1, 1))
    most_logits = min(chunk, MOST_VERIFIED)
    prefill = PlanProfile((1, 1, prefill_batch), (1, max(1, chunk // 2), chunk), (1, 1, most_logits))
    return decode, prefill


def build_plan(
    onnx_path: Path, plan_path: Path, *, profiles: Sequence[PlanProfile], target: Target
) -> PlanStamp:
    """Compile the graph in `onnx_path` to `plan_path`, a kernel set per profile; strongly typed.

    TensorRT-RTX needs no GPU. Raises ExportError when the target's library or GPU is missing, when the graph
    doesn't parse or build, when the parser ignored an input, and when a profile doesn't fit the graph.
    """
    _require(target)
    with staged(plan_path) as directory:
        request = {
            "onnx": str(onnx_path.resolve()),
            "plan": str(directory / plan_path.name),
            "timing_cache": str(plan_path.with_name("timing.cache").resolve()),
            "profiles": [asdict(profile) for profile in profiles],
            "target": target,
        }
        done = subprocess.run(
            [sys.executable, "-m", "export.plan_builder", json.dumps(request)],
            env=os.environ | {"POLYGRAPHY_USE_TENSORRT_RTX": str(int(target == "tensorrt-rtx"))},
            cwd=Path(__file__).parent.parent,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return _stamp_from_log(done.stdout, done.returncode, onnx_path)


def _stamp_from_log(log: str, returncode: int, onnx_path: Path) -> PlanStamp:
    lines = log.strip().splitlines()
    fatal = [line for line in lines if any(words in line.lower() for words in FATAL)]
    if fatal:
        raise ExportError(f"{onnx_path}: a plan would not compute what the graph says: {fatal[0]}")
    if returncode:
        errors = [line for line in lines if line.startswith(("[E]", "[!]"))] or lines[-LAST_LINES:]
        raise ExportError(f"{onnx_path}: no plan could be built; {OTHERWISE}\n" + "\n".join(errors))
    return PlanStamp(**json.loads(lines[-1]))


def _require(target: Target) -> None:
    if target not in MODULES:
        raise ExportError(f"target {target!r} was given; known: {', '.join(MODULES)}")
    if find_spec(MODULES[target]) is None:
        raise ExportError(f"the Python package {MODULES[target]} is not installed; {OTHERWISE}")
    if target == "tensorrt" and shutil.which("nvidia-smi") is None:
        raise ExportError(
            f"TensorRT builds on the GPU that will run the plan, and there is none; {OTHERWISE}"
        )

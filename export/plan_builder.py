"""The process that builds one plan: `python -m export.plan_builder REQUEST`, both in and out in JSON.

POLYGRAPHY_USE_TENSORRT_RTX has said which library Polygraphy drives before this starts (export/tensorrt.py).
The last line on standard output is the plan's stamp, all before it is the log.
"""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from polygraphy.backend.tensorrt_rtx import CreateConfigRTX
from polygraphy.backend.trt import (
    CreateConfig,
    Profile,
    engine_bytes_from_network,
    network_from_onnx_path,
)
from polygraphy.logger import G_LOGGER
from polygraphy.mod.trt_importer import lazy_import_trt

RTX = "tensorrt-rtx"


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build what `request` says (see export.tensorrt.build_plan) and return its stamp."""
    builder, network, parser = network_from_onnx_path(request["onnx"], strongly_typed=True)
    profiles = [_profile(network, **shapes) for shapes in request["profiles"]]
    plan = engine_bytes_from_network((builder, network, parser), **_options(request, profiles))
    Path(request["plan"]).write_bytes(bytes(plan))
    layers = Counter(network.get_layer(index).type.name for index in range(network.num_layers))
    return {
        "library": request["target"],
        "version": lazy_import_trt().__version__,
        "compute_capability": "any" if request["target"] == RTX else _compute_capability(),
        "layers": dict(sorted(layers.items())),
    }


def _options(request: dict[str, Any], profiles: list[Profile]) -> dict[str, Any]:
    if request["target"] == RTX:  # times no kernels when it builds, so there is nothing to cache
        return {"config": CreateConfigRTX(profiles=profiles)}
    cache = request["timing_cache"]
    known = cache if Path(cache).exists() else None
    return {"config": CreateConfig(profiles=profiles, load_timing_cache=known), "save_timing_cache": cache}


def _profile(network: Any, *, batch: list[int], tokens: list[int], logits: list[int]) -> Profile:
    """Every input's axis 0 is the batch; another free axis is the number of tokens, or of their logits."""
    profile = Profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        free = logits if tensor.name == "logits_at" else tokens
        shapes = [
            [B if axis == 0 else N if size == -1 else size for axis, size in enumerate(tensor.shape)]
            for B, N in zip(batch, free, strict=True)
        ]
        profile.add(tensor.name, *shapes)
    return profile


def _compute_capability() -> str:
    """Of the first GPU, such as `9.0`, as the driver's own tool says."""
    query = ["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]


if __name__ == "__main__":
    G_LOGGER.module_severity = G_LOGGER.WARNING
    print(json.dumps(build(json.loads(sys.argv[1]))))

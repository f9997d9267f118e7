"""From a model's configuration, in the native backend's terms, to ONNX Runtime's options."""

from collections.abc import Callable, Mapping
from typing import Any

import onnxruntime as ort

from backends.onnxruntime.errors import LoadError

Config = Mapping[str, Any]

# The native backend's numbers (its README, "level").
LEVELS = {
    0: ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
    -1: ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
MODES = {"0": ort.ExecutionMode.ORT_SEQUENTIAL, "1": ort.ExecutionMode.ORT_PARALLEL}
SWITCH = {"0": False, "1": True}
INITIALIZERS = "session.use_device_allocator_for_initializers"
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
FOR_GPU = ("arena_extend_strategy", "cudnn_conv_algo_search", "do_copy_in_default_stream", "gpu_mem_limit")

# Fields that would change what is computed, or where, and that this backend does not have.
ABSENT: Mapping[str, str] = {
    "sequence_batching": "keeps state between requests; this backend serves stateless graphs",
    "batch_input": "is made by the native backend only",
    "batch_output": "is made by the native backend only",
}


def _set_threads(options: ort.SessionOptions, name: str, value: str) -> None:
    if not value.isdecimal():
        raise LoadError(f"parameter {name} is {value!r}; a number of threads is needed, 0 for every core")
    setattr(options, name.replace("thread_count", "num_threads"), int(value))


def _set_mode(options: ort.SessionOptions, name: str, value: str) -> None:
    options.execution_mode = _one_of(MODES, name, value)


def _set_switch(options: ort.SessionOptions, name: str, value: str) -> None:
    setattr(options, name.replace("enable_mem_arena", "enable_cpu_mem_arena"), _one_of(SWITCH, name, value))


def _set_entry(options: ort.SessionOptions, name: str, value: str) -> None:
    options.add_session_config_entry(name, str(int(_one_of(SWITCH, name, value))))


PARAMETERS: Mapping[str, Callable[[ort.SessionOptions, str, str], None]] = {
    "intra_op_thread_count": _set_threads,
    "inter_op_thread_count": _set_threads,
    "execution_mode": _set_mode,
    "enable_mem_arena": _set_switch,
    "enable_mem_pattern": _set_switch,
    INITIALIZERS: _set_entry,
}


def session_options(config: Config) -> ort.SessionOptions:
    """The options that a configuration asks for; LoadError for what can't be had on a CPU in Python."""
    _refuse_absent(config)
    options = ort.SessionOptions()
    # Idle workers sleep: the cores belong to the language models beside.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    options.graph_optimization_level = _one_of(LEVELS, "optimization.graph.level", level)
    for name, value in _parameters(config).items():
        if name in PARAMETERS:
            PARAMETERS[name](options, name, value)
    return options


def run_options(config: Config) -> ort.RunOptions:
    """The options of each run."""
    options = ort.RunOptions()
    shrinks = _parameters(config).get(SHRINKAGE)
    if shrinks:
        options.add_run_config_entry(SHRINKAGE, shrinks)
    return options


def _parameters(config: Config) -> dict[str, str]:
    """The parameters by name; LoadError for one that is not known."""
    values = {name: entry["string_value"] for name, entry in config.get("parameters", {}).items()}
    for name in values:
        if name in FOR_GPU:
            raise LoadError(
                f"parameter {name} is for a GPU, which the embedded server does not use; remove it"
            )
        if name not in (*PARAMETERS, SHRINKAGE):
            raise LoadError(f"unknown parameter {name!r}; known are {', '.join((*PARAMETERS, SHRINKAGE))}")
    return values


def _refuse_absent(config: Config) -> None:
    for name, why in ABSENT.items():
        if config.get(name):
            raise LoadError(f"{name} {why}; remove it, or serve the model with Triton's own image")
    for kind, accelerators in config.get("optimization", {}).get("execution_accelerators", {}).items():
        if accelerators:
            names = ", ".join(accelerator["name"] for accelerator in accelerators)
            raise LoadError(
                f"{kind} asks for {names}; the embedded server computes with ONNX Runtime's own CPU kernels: "
                "remove it, or serve the model with Triton's own image"
            )
    if config.get("model_operations", {}).get("op_library_filename"):
        raise LoadError("op_library_filename names code of its own, which is not loaded; remove it")
    if any(group["kind"] == "KIND_GPU" for group in config.get("instance_group", ())):
        raise LoadError("instance_group asks for KIND_GPU; the embedded server has none, use KIND_CPU")


def _one_of(allowed: Mapping[Any, Any], name: str, value: Any) -> Any:
    if value not in allowed:
        raise LoadError(f"{name} is {value!r}; allowed are {', '.join(map(str, allowed))}")
    return allowed[value]

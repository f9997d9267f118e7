"""The `config.pbtxt` of each of a model's three directories, through Triton's own protobuf classes."""

from collections.abc import Collection, Mapping
from typing import TypeVar

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export.contract import (
    GENERATION_INPUTS,
    OUTPUTS,
    PROMPT_INPUTS,
    SHARED,
    TOKENIZED,
    TensorSpec,
    engine_name,
    extra_tensors,
    tokenizer_name,
)

MAX_BATCH_SIZE = 1

_Tensor = TypeVar("_Tensor", triton.ModelInput, triton.ModelOutput)

# backends/causal_lm reads these; 0 threads are all cores.
ENGINE_PARAMETERS: dict[str, str] = {
    "slots": "16",
    "queue_size": "64",
    "prefill_tokens": "256",
    "threads": "0",
}


def engine_config(model: str, parameters: Mapping[str, str], figures: Collection[str] = ()) -> str:
    """The decoupled engine; the backend itself declares its tensors, but for those of the `figures`."""
    config = _python_model(engine_name(model), backend="causal_lm")
    config.model_transaction_policy.decoupled = True
    for name, value in parameters.items():
        config.parameters[name].string_value = value
    for name, spec in extra_tensors(figures).items():
        config.output.append(_tensor(triton.ModelOutput(name=name), spec))
    return text_format.MessageToString(config)


def tokenizer_config(model: str) -> str:
    """The tokenizer; its tensors are declared by the backend itself."""
    return text_format.MessageToString(_python_model(tokenizer_name(model), backend="tokenizer"))


def _python_model(name: str, *, backend: str) -> triton.ModelConfig:
    config = triton.ModelConfig(name=name, backend=backend, max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    return config


def ensemble_config(model: str, figures: Collection[str] = ()) -> str:
    """What clients call: the tokenizer's output goes to the engine, and every input to where it is read.

    `figures` are the graph's extra outputs.
    """
    outputs = OUTPUTS | extra_tensors(figures)
    config = triton.ModelConfig(name=model, platform="ensemble", max_batch_size=MAX_BATCH_SIZE)
    config.version_policy.latest.num_versions = 1
    for name, spec in (PROMPT_INPUTS | GENERATION_INPUTS).items():
        config.input.append(_tensor(triton.ModelInput(name=name, optional=True), spec))
    for name, spec in outputs.items():
        config.output.append(_tensor(triton.ModelOutput(name=name), spec))
    to_ids = config.ensemble_scheduling.step.add(model_name=tokenizer_name(model), model_version=-1)
    to_ids.input_map.update({name: name for name in (*PROMPT_INPUTS, *SHARED)})
    to_ids.output_map.update({name: name for name in TOKENIZED})
    to_text = config.ensemble_scheduling.step.add(model_name=engine_name(model), model_version=-1)
    to_text.input_map.update({name: name for name in (*TOKENIZED, *GENERATION_INPUTS)})
    to_text.output_map.update({name: name for name in outputs})
    return text_format.MessageToString(config)


def _tensor(tensor: _Tensor, spec: TensorSpec) -> _Tensor:
    tensor.data_type = triton.DataType.Value(spec.type)
    tensor.dims.extend(spec.dims)
    return tensor

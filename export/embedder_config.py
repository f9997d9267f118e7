"""The three directories that make a vector of a text, and their `config.pbtxt`."""

from google.protobuf import text_format
from tritonclient.grpc import model_config_pb2 as triton

from export.embedder_graph import INPUTS, OUTPUT
from export.graph_config import MAX_BATCH_SIZE, graph_config
from export.graph_proof import Tensor


def embedder_name(model: str) -> str:
    """The graph: token ids → vector."""
    return f"{model}_embedder"


def embedding_name(model: str) -> str:
    """The ensemble that clients call: text → vector."""
    return f"{model}_embedding"


def embedding_tokenizer_name(model: str) -> str:
    """Between them: text → token ids."""
    return f"{model}_embedding_tokenizer"


def embedder_config(model: str, width: int) -> str:
    """The graph, whose requests of one length are computed together."""
    inputs = [Tensor(name=name, type="tensor(int64)", shape=(-1, -1)) for name in INPUTS]
    output = Tensor(name=OUTPUT, type="tensor(float)", shape=(-1, width))
    return graph_config(embedder_name(model), inputs, [output], batches=True)


def embedding_tokenizer_config(model: str) -> str:
    """The tokenizer; its tensors are declared by the backend itself."""
    config = triton.ModelConfig(
        name=embedding_tokenizer_name(model), backend="embedding_tokenizer", max_batch_size=MAX_BATCH_SIZE
    )
    config.version_policy.latest.num_versions = 1
    config.instance_group.add(kind=triton.ModelInstanceGroup.KIND_CPU, count=1)
    return text_format.MessageToString(config)


def embedding_config(model: str, width: int) -> str:
    """The ensemble: a batch of texts in, their vectors and numbers of tokens out."""
    config = triton.ModelConfig(
        name=embedding_name(model), platform="ensemble", max_batch_size=MAX_BATCH_SIZE
    )
    config.version_policy.latest.num_versions = 1
    config.input.add(name="text_input", data_type=triton.TYPE_STRING, dims=[1])
    config.input.add(name="truncate", data_type=triton.TYPE_BOOL, dims=[1], optional=True)
    config.output.add(name=OUTPUT, data_type=triton.TYPE_FP32, dims=[width])
    config.output.add(name="num_tokens", data_type=triton.TYPE_INT32, dims=[1])
    step = config.ensemble_scheduling.step
    to_ids = step.add(model_name=embedding_tokenizer_name(model), model_version=-1)
    to_ids.input_map.update({name: name for name in ("text_input", "truncate")})
    to_ids.output_map.update({name: name for name in (*INPUTS, "num_tokens")})
    to_vector = step.add(model_name=embedder_name(model), model_version=-1)
    to_vector.input_map.update({name: name for name in INPUTS})
    to_vector.output_map.update({OUTPUT: OUTPUT})
    return text_format.MessageToString(config)

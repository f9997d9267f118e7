"""Plain tritonclient calls, without our own client, for the tests of the server itself."""

import asyncio
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc.aio as triton
from tritonclient.grpc import InferInput
from tritonclient.utils import np_to_triton_dtype

DTYPES: dict[str, Any] = {
    "input_ids": np.int32,
    "prompt_lengths": np.int32,
    "num_permutations": np.int32,
    "max_tokens": np.int32,
    "min_tokens": np.int32,
    "min_length": np.int32,
    "top_k": np.int32,
    "num_log_probs": np.int32,
    "seed": np.uint64,
    "stream": np.bool_,
    "stop": np.bool_,
    "return_log_probs": np.bool_,
    "return_num_input_tokens": np.bool_,
    "return_num_output_tokens": np.bool_,
    "exclude_input_in_output": np.bool_,
    "text_input": np.object_,
    "messages": np.object_,
    "tools": np.object_,
    "evidence": np.object_,
    "stop_words": np.object_,
    "bad_words": np.object_,
    "logit_bias": np.object_,
    "guided_decoding_guide_type": np.object_,
    "guided_decoding_guide": np.object_,
    "sampling_parameters": np.object_,
    "session_id": np.object_,
}


@dataclass
class Answer:
    """All responses of one request."""

    pieces: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""
    finals: int = 0

    @property
    def text(self) -> bytes:
        return b"".join(piece["text_output"] for piece in self.pieces)

    @property
    def ids(self) -> list[int]:
        return [token for piece in self.pieces for token in piece["output_ids"]]

    @property
    def finish_reason(self) -> str:
        return self.pieces[-1]["finish_reason"].decode() if self.pieces else ""


def tensor(name: str, value: Any) -> InferInput:
    """A contract value with its leading axis of 1; floats are FP32 unless the table says otherwise."""
    flat = value if isinstance(value, list) else [value]
    encoded = [item.encode() if isinstance(item, str) else item for item in flat]
    array = np.array([encoded], dtype=DTYPES.get(name, np.float32))
    made = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


async def generate(url: str, model: str, request_id: str = "", **values: Any) -> Answer:
    """One request over a stream of its own, read until the server closes it."""
    answer = Answer()
    async for result, error in responses(url, model, request_id, **values):
        collect(answer, result, error)
    return answer


async def responses(
    url: str, model: str, request_id: str = "", **values: Any
) -> AsyncIterator[tuple[Any, Any]]:
    inputs = [tensor(name, value) for name, value in values.items()]

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": model, "inputs": inputs, "request_id": request_id}

    client = triton.InferenceServerClient(url)
    try:
        async for pair in client.stream_infer(requests()):
            yield pair
    finally:
        await client.close()


def collect(answer: Answer, result: Any, error: Any) -> None:
    if error is not None:
        answer.error, answer.finals = str(error), answer.finals + 1
        return
    response = result.get_response()
    answer.finals += response.parameters["triton_final_response"].bool_param
    arrays = {output.name: result.as_numpy(output.name).reshape(-1) for output in response.outputs}
    if arrays:
        lists = {"output_ids", "output_log_probs"}
        answer.pieces.append(
            {name: array.tolist() if name in lists else array[0] for name, array in arrays.items()}
        )


async def metric(url: str, name: str, model: str) -> float:
    """One of our metric families, summed over a model's versions."""
    async with httpx.AsyncClient(trust_env=False) as client:
        text = (await client.get(url)).text
    found = re.findall(rf'^trident_{name}{{[^}}]*model="{model}"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return sum(map(float, found))


async def until_metric(url: str, name: str, model: str, *, equals: float) -> None:
    """Waits until a metric has a value; the metrics lag by a quarter of a second."""
    async with asyncio.timeout(20):
        while await metric(url, name, model) != equals:
            await asyncio.sleep(0.05)

"""The asynchronous Triton client: streams of generated text over gRPC, and what the server has to offer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from uuid import uuid4

from grpc import StatusCode  # type: ignore[import-untyped]
from grpc.aio import AioRpcError  # type: ignore[import-untyped]
from tritonclient.grpc.aio import InferenceServerClient
from tritonclient.grpc.model_config_pb2 import DataType
from tritonclient.utils import InferenceServerException

from client.embeddings import TEXT_SUFFIX, Embeddings, Texts, embeddings_from, infer_inputs, target_of
from client.readiness import ModelState, readiness
from client.wire import GenerateRequest, GenerateResponse, Tensor, WireError, infer_input

DEFAULT_URL = "127.0.0.1:8001"
ENGINE_SUFFIX = "_engine"

_CHANNEL_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own back-off grows to two minutes: a restarted server would look dead for as long.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
_STOP_PATIENCE_S = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)
_UNARY_TIMEOUT_S = 10.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A served model: its platform or backend, loaded versions, and tensors by name."""

    name: str
    platform: str
    versions: tuple[str, ...]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class AsyncTritonClient:
    """Generates text on Triton: one channel, one bidirectional stream a request. Make it in the event loop.

    Every method raises WireError: `unavailable` when the server is not there, else what the server said.
    """

    def __init__(self, url: str = DEFAULT_URL) -> None:
        self._url = url
        self._client = InferenceServerClient(url, channel_args=_CHANNEL_OPTIONS)
        self._stopping: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let the cancellations under way arrive, then close the channel."""
        if self._stopping:
            await asyncio.wait(self._stopping, timeout=2.0)
        await self._client.close()

    async def generate(
        self, model: str, request: GenerateRequest, *, request_id: str | None = None
    ) -> AsyncGenerator[GenerateResponse, None]:
        """Yield the responses of one generation; leaving early (aclose, cancellation) frees its slot.

        `request_id` must be unique among running requests; by default it is drawn at random.
        """
        request_id = request_id or uuid4().hex
        target = model + ENGINE_SUFFIX if request.input_ids is not None else model
        stream = self._open(target, request.infer_inputs(), request_id)
        reading: asyncio.Future[Any] | None = None
        finished = False
        try:
            # A cancelled read tears the stream down at once; until the engine has answered, its end is the
            # only proof that a stop has reached the request, so the first read is kept out of harm's way.
            reading = asyncio.ensure_future(anext(stream, None))
            item = await asyncio.shield(reading)
            while item is not None:
                response = _response(item)
                finished = bool(response.finish_reason)
                yield response
                item = await anext(stream, None)
            if not finished:
                raise WireError("internal", "server", "the stream ended before the text did")
        except (WireError, AioRpcError) as error:
            finished = True
            raise self._translated(error) from error
        finally:
            if not finished:
                await self._stop(model, request_id, stream, reading)

    async def embed(self, model: str, texts: Texts) -> Embeddings:
        """Return the vectors of up to MAX_BATCH `texts`, all of them strings or all lists of token ids."""
        with self._translating():
            result = await self._client.infer(target_of(model, texts), infer_inputs(texts))
        return embeddings_from(result, texts)

    async def embedding_models(self) -> list[str]:
        """Return the names of the models that can embed."""
        return sorted(
            name.removesuffix(TEXT_SUFFIX) for name in await self._ready() if name.endswith(TEXT_SUFFIX)
        )

    async def models(self) -> list[str]:
        """Return the names that clients can generate with: ready, and with a ready engine behind them."""
        ready = await self._ready()
        return sorted(name for name in ready if name + ENGINE_SUFFIX in ready)

    async def readiness(self) -> dict[str, str]:
        """Return the models that are or should be loaded, each with what keeps it from answering, or ""."""
        return readiness(await self._states())

    async def _ready(self) -> set[str]:
        return {model.name for model in await self._states() if model.state == "READY"}

    async def _states(self) -> list[ModelState]:
        with self._translating():
            index = await self._client.get_model_repository_index(client_timeout=_UNARY_TIMEOUT_S)
        return [ModelState(entry.name, entry.state, entry.reason) for entry in index.models]

    async def server_ready(self) -> bool:
        """Return whether the server takes requests."""
        with self._translating():
            return bool(await self._client.is_server_ready(client_timeout=_UNARY_TIMEOUT_S))

    async def model_info(self, model: str) -> ModelInfo:
        """Return what the server reports of a model; WireError `not_found` if it has none of that name."""
        with self._translating():
            response = await self._client.get_model_config(model, client_timeout=_UNARY_TIMEOUT_S)
            metadata = await self._client.get_model_metadata(model, client_timeout=_UNARY_TIMEOUT_S)
        config = response.config
        return ModelInfo(
            config.name,
            config.platform or config.backend,
            tuple(metadata.versions),
            {tensor.name: _tensor(tensor) for tensor in config.input},
            {tensor.name: _tensor(tensor) for tensor in config.output},
        )

    def _open(self, model: str, inputs: list[Any], request_id: str, timeout: float | None = None) -> Any:
        async def only_request() -> AsyncIterator[dict[str, Any]]:
            yield {"model_name": model, "inputs": inputs, "request_id": request_id}

        return self._client.stream_infer(only_request(), stream_timeout=timeout)

    async def _stop(
        self, model: str, request_id: str, stream: Any, reading: asyncio.Future[Any] | None
    ) -> None:
        task = asyncio.create_task(self._stop_until_ended(model, request_id, stream, reading))
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)
        await asyncio.shield(task)

    async def _stop_until_ended(
        self, model: str, request_id: str, stream: Any, reading: asyncio.Future[Any] | None
    ) -> None:
        """Send stop until the stream has ended: the first may overtake the request on its way."""
        ended = asyncio.create_task(_drain(stream, reading))
        for patience in _STOP_PATIENCE_S:
            await self._send_stop(model, request_id)
            await asyncio.wait({ended}, timeout=patience)
            if ended.done():
                return
        logger.warning(
            "request %s of model %s did not end when stopped; closing its stream", request_id, model
        )
        stream.cancel()
        await asyncio.wait({ended})

    async def _send_stop(self, model: str, request_id: str) -> None:
        stream = self._open(model + ENGINE_SUFFIX, [infer_input("stop", True)], request_id, timeout=2.0)
        try:
            async for _, error in stream:
                if error is not None:
                    logger.warning("stop of request %s was refused: %s", request_id, error.message())
        except AioRpcError as error:
            logger.warning("stop of request %s did not arrive: %s", request_id, error.details())

    @contextmanager
    def _translating(self) -> Iterator[None]:
        try:
            yield
        except InferenceServerException as error:
            raise self._translated(error) from error

    def _translated(self, error: WireError | AioRpcError | InferenceServerException) -> WireError:
        if isinstance(error, WireError):
            return error
        gone = (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
        if isinstance(error, AioRpcError):
            away, text = error.code() in gone, error.details() or error.code().name
        else:
            away, text = error.status() in {str(code) for code in gone}, str(error.message())
        if away:
            advice = "start it with `trident serve`, or name its address by --url or TRIDENT_URL"
            return WireError("unavailable", "server", f"Triton does not answer at {self._url}: {advice}")
        return WireError.parse(text)


def _response(item: tuple[Any, InferenceServerException | None]) -> GenerateResponse:
    result, error = item
    if error is not None:
        raise WireError.parse(str(error.message()))
    return GenerateResponse.from_infer_result(result)


def _tensor(config: Any) -> Tensor:
    (size,) = config.dims
    datatype = DataType.Name(config.data_type).removeprefix("TYPE_")
    return Tensor("BYTES" if datatype == "STRING" else datatype, size)


async def _drain(stream: Any, reading: asyncio.Future[Any] | None) -> None:
    """Read the stream to its end; an error or a closed stream is an end too."""
    try:
        if reading is not None:
            await reading
        while await anext(stream, None) is not None:
            pass
    except (AioRpcError, asyncio.CancelledError):
        return

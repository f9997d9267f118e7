"""The part of Triton's gRPC service that the client uses, playing a script instead of a model."""

import json
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc
from tritonclient.grpc import service_pb2, service_pb2_grpc

from client.wire import EXTRA_OUTPUTS, OUTPUTS

KNOWN = OUTPUTS | EXTRA_OUTPUTS

FORMATS = {"INT32": "i", "UINT64": "Q", "FP32": "f", "BOOL": "?"}


def encoded(name, value):
    datatype, size = KNOWN[name]
    values = value if size == -1 else [value]
    if datatype == "BYTES":
        parts = [v if isinstance(v, bytes) else v.encode() for v in values]
        return b"".join(struct.pack("<I", len(part)) + part for part in parts)
    return struct.pack(f"<{len(values)}{'i' if datatype == 'INT32' else 'f'}", *values)


def infer_response(**outputs):
    response = service_pb2.ModelInferResponse()
    for name, value in outputs.items():
        datatype, size = KNOWN[name]
        tensor = response.outputs.add(name=name, datatype=datatype)
        tensor.shape.extend([1, len(value) if size == -1 else 1])
        response.raw_output_contents.append(encoded(name, value))
    return response


def sent_values(request):
    """The inputs of a request as Python values, read from the raw bytes by Triton's published layout."""
    values = {}
    for tensor, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        count = tensor.shape[1]
        if tensor.datatype == "BYTES":
            items, offset = [], 0
            for _ in range(count):
                (length,) = struct.unpack_from("<I", raw, offset)
                items.append(raw[offset + 4 : offset + 4 + length].decode())
                offset += 4 + length
        else:
            items = list(struct.unpack(f"<{count}{FORMATS[tensor.datatype]}", raw))
        values[tensor.name] = (tensor.datatype, tuple(tensor.shape), items)
    return values


@dataclass
class TritonDouble(service_pb2_grpc.GRPCInferenceServiceServicer):
    """`script` is what each generation plays: dicts of outputs, error texts, seconds to wait, "forever"."""

    script: list = field(default_factory=lambda: [{"text_output": "Hi", "finish_reason": "stop"}])
    ready: dict = field(
        default_factory=lambda: {"toy": "READY", "toy_engine": "READY", "toy_tokenizer": "READY"}
    )
    arrival_delay: float = 0.0
    telling: set = field(default_factory=set)
    requests: list = field(default_factory=list)
    stops: list = field(default_factory=list)
    running: dict = field(default_factory=dict)

    def start(self):
        self._server = grpc.server(ThreadPoolExecutor(256))
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(self, self._server)
        self.url = f"127.0.0.1:{self._server.add_insecure_port('127.0.0.1:0')}"
        self._server.start()

    def close(self):
        self._server.stop(0).wait()

    def ModelStreamInfer(self, requests, context):  # noqa: N802
        for request in requests:
            inputs = sent_values(request)
            if "stop" in inputs:
                yield self._stop(request)
                continue
            self.requests.append((request.model_name, request.id, inputs))
            # the tokenizer's step: the engine does not know the id yet
            time.sleep(self.arrival_delay)
            stopped = self.running[request.id] = threading.Event()
            try:
                yield from self._play(stopped)
            finally:
                del self.running[request.id]

    def _stop(self, request):
        self.stops.append((request.model_name, request.id))
        if request.id in self.running:
            self.running[request.id].set()
        return service_pb2.ModelStreamInferResponse(infer_response=infer_response(finish_reason="cancelled"))

    def _play(self, stopped):
        for item in self.script:
            if isinstance(item, str) and item != "forever":
                yield service_pb2.ModelStreamInferResponse(error_message=item)
            elif isinstance(item, dict):
                yield service_pb2.ModelStreamInferResponse(infer_response=infer_response(**item))
            elif stopped.wait(60 if item == "forever" else item):
                cancelled = infer_response(text_output="", finish_reason="cancelled")
                yield service_pb2.ModelStreamInferResponse(infer_response=cancelled)
                return

    def RepositoryIndex(self, request, context):  # noqa: N802
        response = service_pb2.RepositoryIndexResponse()
        for name, state in self.ready.items():
            response.models.add(name=name, version="1", state=state)
        return response

    def ServerReady(self, request, context):  # noqa: N802
        return service_pb2.ServerReadyResponse(ready=True)

    def ModelMetadata(self, request, context):  # noqa: N802
        return service_pb2.ModelMetadataResponse(name=request.name, versions=["1"])

    def ModelConfig(self, request, context):  # noqa: N802
        if request.name not in self.ready:
            message = f"Request for unknown model: '{request.name}' is not found"
            context.abort(grpc.StatusCode.NOT_FOUND, message)
        response = service_pb2.ModelConfigResponse()
        response.config.name = request.name
        response.config.platform = "ensemble"
        response.config.input.add(name="text_input", data_type="TYPE_STRING", dims=[1])
        response.config.output.add(name="output_ids", data_type="TYPE_INT32", dims=[-1])
        if request.name in self.telling:
            response.config.output.add(name="uncertainty", data_type="TYPE_STRING", dims=[1])
        return response


TIMINGS = json.dumps({"queue_ns": 1, "prefill_ns": 2, "decode_ns": 3})

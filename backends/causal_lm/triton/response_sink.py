"""One request's responses on their way to Triton."""

import time
from typing import Any

import triton_python_backend_utils as pb

from backends.causal_lm.requests.request import Output
from backends.causal_lm.triton.tensors import arrays_from

# The contract's codes as names of Triton's; looked up late, because auto-complete runs without them.
ERROR_CODES = {
    "invalid": "INVALID_ARG",
    "overloaded": "UNAVAILABLE",
    "timeout": "UNAVAILABLE",
    "unavailable": "UNAVAILABLE",
    "internal": "INTERNAL",
}

# Asking Triton takes 43 µs across the process border, and the engine asks for every sequence at every step.
SECONDS_BETWEEN_CHECKS = 0.05


class ResponseSink:
    """Sends what the engine has for one request; the last response carries FINAL."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._next_check = 0.0
        self._cancelled = False
        self._wanted = frozenset(request.requested_output_names())

    def send(self, output: Output, final: bool) -> None:
        arrays = arrays_from(output).items()
        tensors = [pb.Tensor(name, array) for name, array in arrays if name in self._wanted]
        self._sender.send(
            pb.InferenceResponse(tensors), pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL if final else 0
        )

    def fail(self, code: str, message: str) -> None:
        error = pb.TritonError(message, getattr(pb.TritonError, ERROR_CODES[code]))
        self._finish(pb.InferenceResponse(error=error))

    def end_empty(self) -> None:
        self._finish(pb.InferenceResponse([]))

    def is_cancelled(self) -> bool:
        """Whether the client of a direct request has gone; known at most 50 ms later."""
        now = time.monotonic()
        if not self._cancelled and now >= self._next_check:
            self._next_check = now + SECONDS_BETWEEN_CHECKS
            self._cancelled = bool(self._sender.is_cancelled())
        return self._cancelled

    def _finish(self, response: Any) -> None:
        self._sender.send(response, pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

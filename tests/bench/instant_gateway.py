"""`python -m tests.bench.instant_gateway`: the gateway as it is, before a Triton that answers at once."""

import re
import sys
from collections.abc import AsyncGenerator

from client.wire import GenerateRequest, GenerateResponse
from gateway.__main__ import main
from tests.gateway.fake_transport import FakeTransport, spoken

MODEL = "toy"
TEXT = "The keeper wound the last clock, listened until it struck, and went up to light the lamp."


class InstantTransport(FakeTransport):
    """Says the same to everyone, and keeps nothing of what it was asked: hundreds of thousands are coming."""

    def __init__(self) -> None:
        super().__init__(script=spoken(*re.split("(?= )", TEXT)), served=[MODEL])
        (self._whole,) = self.merged()

    async def generate(
        self, model: str, request: GenerateRequest, *, request_id: str | None = None
    ) -> AsyncGenerator[GenerateResponse, None]:
        for response in self.script if request.stream else [self._whole]:
            yield response


if __name__ == "__main__":
    sys.exit(main(connect=lambda _: InstantTransport()))

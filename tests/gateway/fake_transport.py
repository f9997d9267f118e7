"""Stands where Triton stands: plays a script of responses, and remembers what it was asked."""

import asyncio
import struct
from dataclasses import dataclass, field

from client.embeddings import Embeddings
from client.wire import GenerateResponse, WireError


def spoken(*pieces, finish_reason="stop", **last):
    """The responses of a stream that says `pieces`, one token each."""
    responses = [
        GenerateResponse(text_output=piece, output_ids=[i], num_input_tokens=7, num_output_tokens=i + 1)
        for i, piece in enumerate(pieces)
    ]
    end = GenerateResponse(
        finish_reason=finish_reason, num_input_tokens=7, num_output_tokens=len(pieces), **last
    )
    return [*responses, end]


@dataclass
class FakeTransport:
    """A script item is a response, an exception to raise, seconds to sleep, or an Event to wait for."""

    script: list = field(default_factory=lambda: spoken("Hello", " world"))
    served: list = field(default_factory=lambda: ["toy"])
    embedding: list = field(default_factory=lambda: ["minilm"])
    away: bool = False
    troubles: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)
    ids: list = field(default_factory=list)
    running: int = 0
    given: int = 0
    cancelled: int = 0
    closed: bool = False

    async def generate(self, model, request, *, request_id=None):
        self.asked.append(request)
        self.ids.append(request_id)
        self.running += 1
        try:
            for item in self.script if request.stream else self.merged():
                await self.play(item)
                if isinstance(item, GenerateResponse):
                    self.given += 1
                    yield item
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled += 1
            raise
        finally:
            self.running -= 1

    async def play(self, item):
        if isinstance(item, Exception):
            raise item
        if isinstance(item, asyncio.Event):
            await item.wait()
        elif isinstance(item, float):
            await asyncio.sleep(item)

    def merged(self):
        """The script as a request without streaming gets it: one response with all text."""
        responses = [item for item in self.script if isinstance(item, GenerateResponse)]
        others = [item for item in self.script if not isinstance(item, GenerateResponse)]
        if not responses:
            return others
        fields = {name: getattr(responses[-1], name) for name in GenerateResponse.__slots__}
        fields["text_output"] = "".join(r.text_output for r in responses)
        for name in ("output_ids", "output_log_probs", "top_log_probs"):
            fields[name] = [value for r in responses for value in getattr(r, name)]
        return [*others, GenerateResponse(**fields)]

    async def embed(self, model, texts):
        """The vector of a text is (its length, 0.5); of token ids, (their sum, 0.5)."""
        if self.away:
            raise WireError("unavailable", "server", "Triton does not answer at 127.0.0.1:8001")
        if model not in self.embedding:
            raise WireError("not_found", "model", f"the server has no model '{model}_embedding'")
        self.asked.append(list(texts))
        if "" in texts:
            raise WireError("invalid", "text_input", "empty; at least one token is needed")
        firsts = [len(text) if isinstance(text, str) else sum(text) for text in texts]
        vectors = tuple(struct.pack("<2f", first, 0.5) for first in firsts)
        return Embeddings(vectors, num_tokens=3 * len(texts))

    async def embedding_models(self):
        return self.embedding

    async def models(self):
        if self.away:
            raise WireError("unavailable", "server", "Triton does not answer at 127.0.0.1:8001")
        return self.served

    async def readiness(self):
        return dict.fromkeys([*self.served, *self.embedding], "") | self.troubles

    async def server_ready(self):
        if self.away:
            raise WireError("unavailable", "server", "Triton does not answer at 127.0.0.1:8001")
        return True

    async def close(self):
        self.closed = True

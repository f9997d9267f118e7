"""Running the choices of one HTTP request side by side, and giving up when its client has gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Sequence
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.types import Receive

from client.wire import GenerateResponse

T = TypeVar("T")
Source = AsyncGenerator[GenerateResponse, None]


class Choices:
    """Several generations merged into one stream of (index, response); holds at most one response of each."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self._sources = sources
        self._reads: dict[asyncio.Future[GenerateResponse | None], int] = {}

    async def start(self) -> None:
        """Wait until every generation has given its first response; raises the first error, all stopped."""
        for index in range(len(self._sources)):
            self._read(index)
        try:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_EXCEPTION)
            for read in done:
                read.result()
        except BaseException:
            await self.close()
            raise

    async def __aiter__(self) -> AsyncIterator[tuple[int, GenerateResponse]]:
        while self._reads:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
            for read in done:
                index = self._reads.pop(read)
                response = read.result()
                if response is not None:
                    yield index, response
                    self._read(index)

    async def close(self) -> None:
        """Stop what still runs in the engine; waits until it is told."""
        reads = list(self._reads)
        self._reads.clear()
        for read in reads:
            read.cancel()
        await asyncio.gather(*reads, return_exceptions=True)
        await asyncio.gather(*(source.aclose() for source in self._sources), return_exceptions=True)

    def _read(self, index: int) -> None:
        self._reads[asyncio.ensure_future(anext(self._sources[index], None))] = index


async def unless_disconnected(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Return the work's result; when the client goes first, cancel the work and raise ClientDisconnect."""
    working = asyncio.ensure_future(work)
    watching = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({working, watching}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    finally:
        working.cancel()
        watching.cancel()
        await asyncio.gather(working, watching, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

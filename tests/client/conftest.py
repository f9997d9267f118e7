"""A Triton double: a real gRPC server on a free port that speaks the wire contract from a script."""

import pytest

from tests.client.triton_double import TritonDouble


@pytest.fixture
async def triton():
    double = TritonDouble()
    await double.start()
    yield double
    await double.close()

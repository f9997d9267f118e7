"""A Triton double: a real gRPC server on a free port that speaks the wire contract from a script."""

import pytest

from tests.client.triton_double import TritonDouble


@pytest.fixture
def triton():
    double = TritonDouble()
    double.start()
    yield double
    double.close()

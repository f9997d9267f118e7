"""Ports for servers that tests and benches start."""

import socket
from contextlib import ExitStack


def free_ports(count: int) -> list[int]:
    """Ports of the loopback interface that nobody listens on, all held until all are chosen."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]

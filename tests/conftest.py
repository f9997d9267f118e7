"""What holds for all tests."""

import signal


def pytest_configure() -> None:
    """Heed Ctrl-C, which a shell makes the suite, and all that it starts, ignore in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)

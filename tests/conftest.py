"""What holds for all tests."""

import signal

import pytest


def pytest_configure() -> None:
    """Heed Ctrl-C, which a shell makes the suite, and all that it starts, ignore in the background."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before the groups are read
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keep in one of several processes what shares a server or a module's fixtures."""
    for item in items:
        shares_server = "triton_server" in getattr(item, "fixturenames", ())
        group = "the shared server" if shares_server else item.nodeid.partition("::")[0]
        item.add_marker(pytest.mark.xdist_group(group))

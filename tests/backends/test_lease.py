"""Assembled directories stay while a server holds them, whatever others do, and go when none does."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from backends.environment import STUB, ServerEnvironment
from backends.lease import Lease, take


def other(environment: ServerEnvironment, text: str) -> ServerEnvironment:
    """The same environment with another stub: another digest."""
    environment.stub.write_text(text)
    return environment


def names(root: Path) -> set[str]:
    return {path.name for path in root.iterdir()}


def test_what_nobody_holds_is_removed_at_the_next_start(
    environment: ServerEnvironment, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    first = take(environment, root)
    first.release()
    assert names(root) == {first.directory.name}, "the last one stays for the next start"
    second = take(other(environment, "second"), root)
    assert names(root) == {second.directory.name}


def test_what_a_server_holds_stays_until_the_last_holder_lets_go(
    environment: ServerEnvironment, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    first, again = take(environment, root), take(environment, root)
    assert first.directory == again.directory
    second = take(other(environment, "second"), root)
    first.release()
    first.release()
    take(environment, root).release()
    assert names(root) == {first.directory.name, second.directory.name}
    again.release()
    take(environment, root).release()
    assert names(root) == {second.directory.name}


def test_the_directory_of_another_living_process_stays_and_of_a_killed_one_goes(
    environment: ServerEnvironment, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    held = take(environment, root)
    script = (
        "import sys; from pathlib import Path; from backends.lease import Lease\n"
        "lease = Lease(Path(sys.argv[1])); print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", script, str(held.directory)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        held.release()
        take(other(environment, "second"), root).release()
        assert held.directory.name in names(root)
        process.kill()
        process.wait()
    take(environment, root).release()
    assert held.directory.name not in names(root)


@pytest.mark.parametrize("left", [".assembling-x", ".pruned-0123456789abcdef"])
def test_what_a_killed_process_left_is_removed(
    environment: ServerEnvironment, tmp_path: Path, left: str
) -> None:
    root = tmp_path / "out"
    (root / left / "python").mkdir(parents=True)
    lease = take(environment, root)
    assert names(root) == {lease.directory.name}


def test_a_directory_whose_last_removal_was_cut_short_is_removed_again(
    environment: ServerEnvironment, tmp_path: Path
) -> None:
    root = tmp_path / "out"
    first = take(environment, root)
    first.release()
    (root / f".pruned-{first.directory.name}" / "python").mkdir(parents=True)
    (root / "a-file").touch()
    second = take(other(environment, "second"), root)
    assert names(root) == {second.directory.name, "a-file"}


def test_a_lease_is_not_inherited(environment: ServerEnvironment, tmp_path: Path) -> None:
    lease = take(environment, tmp_path / "out")
    assert lease._descriptor is not None
    assert not os.get_inheritable(lease._descriptor)


def test_servers_that_come_and_go_never_lose_the_directory_they_hold(
    environment: ServerEnvironment, tmp_path: Path
) -> None:
    root, wheels = tmp_path / "out", []
    for number in range(3):
        wheel = tmp_path / f"wheel{number}"
        subprocess.run(["cp", "-r", str(environment.wheel), str(wheel)], check=True)
        wheels.append(ServerEnvironment(environment.root, "3.11", wheel, environment.libpython))
        wheels[-1].stub.write_text(f"stub {number}")
    lost: list[Path] = []

    def serve(number: int) -> None:
        for turn in range(15):
            mine = (number + turn) % 3
            lease: Lease = take(wheels[mine], root)
            stub = lease.directory / "python" / STUB
            if not stub.exists() or stub.read_text() != f"stub {mine}":
                lost.append(lease.directory)
            lease.release()

    threads = [threading.Thread(target=serve, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lost == []

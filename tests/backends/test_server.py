"""Starting the embedded server: what is checked before, what the user is told, what is left behind."""

import io
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from backends.__main__ import main, status_line
from backends.child import ChildGroup
from backends.environment import ServerEnvironment, ServerError, inspect_environment
from backends.lease import Lease
from backends.server import EmbeddedServer, ModelStatus
from backends.settings import (
    ServerSettings,
    check_settings,
    command_line,
    engine_variables,
    variables_for,
)
from backends.shared_memory import prefix_for, remove_regions, remove_stale_regions
from backends.stubs import StubWatch
from backends.triton_log import TritonLog, essence
from tests.ports import free_ports

ENVIRONMENT = ServerEnvironment(
    root=Path("/p/.triton"), python_version="3.11", wheel=Path("/p/pytriton"), libpython=Path("/py/lib")
)


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def child(code: str, tmp_path: Path) -> ChildGroup:
    return ChildGroup([sys.executable, "-c", code], variables=dict(os.environ), directory=tmp_path)


@pytest.mark.parametrize("option", ["--grpc-port", "--http-port", "--metrics-port"])
def test_a_taken_port_is_named_with_its_option(tmp_path: Path, option: str) -> None:
    field = option.removeprefix("--").replace("-", "_")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=rf"port {port} .* choose another with {option}"):
            check_settings(ServerSettings(repository=tmp_path, **{field: port}))


def test_one_port_for_two_services_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match="9107 is given to both --grpc-port and --http-port"):
        check_settings(ServerSettings(repository=tmp_path, grpc_port=9107, http_port=9107))


def test_a_session_directory_is_made_or_refused_by_name(tmp_path: Path) -> None:
    made = tmp_path / "kept" / "chats"
    check_settings(ServerSettings(repository=tmp_path, session_directory=made))
    assert made.is_dir()
    (tmp_path / "file").touch()
    with pytest.raises(
        ServerError, match=r"sessions can't be kept in .*/file \(File exists\): .*--session-d"
    ):
        check_settings(ServerSettings(repository=tmp_path, session_directory=tmp_path / "file"))


def test_every_engine_is_told_where_sessions_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = engine_variables(ServerSettings(repository=tmp_path, session_directory=Path("chats")))
    assert told == {"CAUSAL_LM_SESSION_DIRECTORY": str(tmp_path / "chats")}
    assert engine_variables(ServerSettings(repository=tmp_path)) == {}


def test_a_missing_repository_is_named(tmp_path: Path) -> None:
    with pytest.raises(ServerError, match=r"no model repository at .*/nowhere: `trident export` makes one"):
        check_settings(ServerSettings(repository=tmp_path / "nowhere"))


def test_the_command_prints_one_sentence_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        ["serve", "--repository", str(tmp_path), "--environment", str(tmp_path / "none"), *named_ports()]
    )
    assert code == 1
    assert "no server environment at" in capsys.readouterr().err


def test_the_server_python_comes_first_and_the_starters_variables_do_not_leak() -> None:
    inherited = {
        "PATH": "/usr/bin",
        "LD_LIBRARY_PATH": "/opt/lib",
        "PYTHONPATH": "/x",
        "PYTHONHOME": "/y",
        "A": "b",
    }
    variables = variables_for(ENVIRONMENT, inherited)
    assert variables["PATH"] == "/p/.triton/bin:/usr/bin"
    assert variables["LD_LIBRARY_PATH"] == "/p/nvidia_pytriton.libs:/py/lib:/opt/lib"
    assert variables["A"] == "b"
    assert not any(name.startswith("PYTHON") for name in variables)


def test_an_empty_library_path_adds_no_entry_for_the_working_directory() -> None:
    assert variables_for(ENVIRONMENT, {})["LD_LIBRARY_PATH"] == "/p/nvidia_pytriton.libs:/py/lib"


def test_triton_is_told_to_listen_where_asked_and_loads_by_request(tmp_path: Path) -> None:
    settings = ServerSettings(repository=tmp_path, host="127.0.0.2", grpc_port=1, http_port=2, metrics_port=3)
    command = command_line(settings, ENVIRONMENT, backends=Path("/b"), shm_prefix="p_")
    assert {"--grpc-address=127.0.0.2", "--http-address=127.0.0.2", "--metrics-address=127.0.0.2"} <= {
        *command
    }
    assert {"--grpc-port=1", "--http-port=2", "--metrics-port=3"} <= {*command}
    assert {"--model-control-mode=explicit", "--load-model=*"} <= {*command}
    assert "--backend-config=python,shm-region-prefix-name=p_" in command


def test_an_environment_without_triton_says_how_to_install_it(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "bin").mkdir(parents=True)
    # A shell wrapper, so that this Python plays one without the wheel.
    wrapper = bare / "bin" / "python"
    wrapper.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
    wrapper.chmod(0o755)
    with pytest.raises(ServerError, match=r"nvidia-pytriton is not installed in .*: run `make setup`"):
        inspect_environment(bare)


@pytest.mark.parametrize(
    ("facts", "complaint"),
    [
        ('"library": "libpython3.11.so.1.0", "shared": false, "places": ["/usr/lib"]', "no shared libpython"),
        ('"library": "libnowhere.so", "shared": true, "places": ["/usr/lib", ""]', "no shared libpython"),
        (
            f'"library": "x.so", "shared": true, "places": ["{os.getcwd()}", "PLACE"]',
            "no stub for Python 3.99",
        ),
    ],
)
def test_what_an_environment_lacks_is_one_sentence(tmp_path: Path, facts: str, complaint: str) -> None:
    (tmp_path / "x.so").touch()
    (tmp_path / "bin").mkdir()
    answer = f'{{"version": "3.99", "wheel": "{tmp_path}", {facts.replace("PLACE", str(tmp_path))}}}'
    python = tmp_path / "bin" / "python"
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    with pytest.raises(ServerError, match=complaint):
        inspect_environment(tmp_path)


def test_a_python_that_does_not_run_is_named_with_its_words(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    python = tmp_path / "bin" / "python"
    python.write_text("#!/bin/sh\necho broken >&2\nexit 3\n")
    python.chmod(0o755)
    with pytest.raises(ServerError, match=r"does not run \(broken\): run `make setup` again"):
        inspect_environment(tmp_path)


def test_a_server_that_dies_at_its_start_leaves_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_server(monkeypatch, "import sys; sys.exit('cannot go on')")
    with (
        pytest.raises(ServerError, match=r"(?s)ended during its start \(exit code 1\).*cannot go on"),
        EmbeddedServer(settings(tmp_path, ready_seconds=30)),
    ):
        pass


def test_a_server_that_never_gets_ready_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_server(monkeypatch, "import time; time.sleep(60)")
    server = EmbeddedServer(settings(tmp_path, ready_seconds=0.3))
    with pytest.raises(ServerError, match=r"not ready after 0\.3 s"), server:
        pass
    assert not psutil.pid_exists(server.pid)


def settings(tmp_path: Path, ready_seconds: float) -> ServerSettings:
    grpc_port, http_port, metrics_port = free_ports(3)
    return ServerSettings(
        repository=tmp_path,
        grpc_port=grpc_port,
        http_port=http_port,
        metrics_port=metrics_port,
        ready_seconds=ready_seconds,
    )


def named_ports() -> list[str]:
    grpc_port, http_port, metrics_port = map(str, free_ports(3))
    return ["--grpc-port", grpc_port, "--http-port", http_port, "--metrics-port", metrics_port]


# Answers as Triton does while it starts, then does what it is told to.
SHORT_LIFE = """
import http.server, subprocess, sys
class Answer(http.server.BaseHTTPRequestHandler):
    def do_GET(self): self.answer(b"")
    def do_POST(self): self.answer(b'[{"name": "m", "version": "1", "state": "READY"}]')
    def log_message(self, *arguments): pass
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
server = http.server.HTTPServer(("127.0.0.1", PORT), Answer)
server.handle_request()
server.handle_request()
"""


@pytest.mark.parametrize(
    ("then", "end"),
    [
        ("print('out of luck'); sys.exit(3)", r"(?s)Triton stopped by itself \(exit code 3\).*out of luck"),
        ("child = subprocess.Popen(['true']); server.serve_forever()", "the process of a model crashed"),
    ],
    ids=["it dies", "a stub dies"],
)
def test_the_command_tells_of_the_models_and_then_of_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], then: str, end: str
) -> None:
    ports = named_ports()
    fake_server(monkeypatch, SHORT_LIFE.replace("PORT", ports[3]) + then)
    assert main(["serve", "--repository", str(tmp_path), *ports]) == 1
    told = capsys.readouterr().err
    assert "  m version 1: ready\nTriton is ready: gRPC 127.0.0.1" in told
    assert re.search(end, told)


def fake_server(monkeypatch: pytest.MonkeyPatch, code: str) -> None:
    """Another program in tritonserver's place: one that misbehaves on demand."""
    monkeypatch.setattr("backends.server.inspect_environment", lambda root: ENVIRONMENT)
    monkeypatch.setattr("backends.server.take", lambda environment, root: Lease(Path.cwd()))
    command = [sys.executable, "-c", code]
    monkeypatch.setattr("backends.server.command_line", lambda *positional, **named: command)


def test_a_child_ends_with_its_group(tmp_path: Path) -> None:
    nested = (
        "import subprocess, sys; subprocess.Popen(['sleep', '60']); print('up', flush=True); sys.stdin.read()"
    )
    group = child(f"{nested}; import time; time.sleep(60)", tmp_path)
    with group.output:
        assert group.output.readline() == "up\n"
        family = psutil.Process(group.pid).children()
        assert [process.name() for process in family] == ["sleep"]
        assert group.stop(grace_seconds=10)
    assert all(not alive(process) for process in family)


def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    stubborn = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(60)"
    )
    group = child(stubborn, tmp_path)
    with group.output:
        assert group.output.readline() == "up\n"
        assert not group.stop(grace_seconds=0.2)
    assert group.ended() == "signal SIGKILL"


def test_a_child_gets_a_signal_when_its_parent_is_killed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from backends.child import ChildGroup; import time;"
        "group = ChildGroup(['sleep', '60'], variables=dict(os.environ), directory=Path('/'));"
        "print(group.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        orphan = psutil.Process(int(parent.stdout.readline()))
        parent.kill()
    deadline = time.monotonic() + 10
    while alive(orphan):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_crashed_stub_is_found_and_a_reaped_one_is_not() -> None:
    watch = StubWatch(os.getpid())
    like_a_stub = [sys.executable, "-c", "import time; time.sleep(60)", *"34567", "model_engine_0_0"]
    with subprocess.Popen(like_a_stub) as crashed:
        while crashed.pid not in watch.models:
            assert watch.crashed() == []
        os.kill(crashed.pid, signal.SIGKILL)
        while psutil.Process(crashed.pid).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)
        assert watch.crashed() == []  # it may yet be reaped
        assert watch.crashed() == ["model_engine"]
    assert watch.crashed() == []


def test_stale_shared_memory_is_removed_and_living_servers_keep_theirs(tmp_path: Path) -> None:
    ours, theirs = prefix_for(os.getpid(), 1), prefix_for(dead_process(), 1)
    for name in (f"{ours}a", f"{theirs}b", "trident_x", "someone_else"):
        (tmp_path / name).touch()
    remove_stale_regions(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{ours}a", "trident_x", "someone_else"}
    remove_regions(ours, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"trident_x", "someone_else"}


@pytest.mark.parametrize(
    ("line", "seen"),
    [
        (
            "E1121 03:34:13.341869 10628 server.cc:642] \"failed to load 'x'\"",
            "Triton, error: failed to load 'x'",
        ),
        ('W1121 03:34:13.341869 10628 server.cc:642] "odd"', "Triton, warning: odd"),
        (
            'E1121 03:34:13.3 10 a.cc:6] "Internal: bad\\n\\nAt:\\n  <frozen>(9): x"',
            "Triton, error: Internal: bad",
        ),
        ("a plain line of a stub", "a plain line of a stub"),
        ('  File "/x/engine.py", line 3, in run', '  File "/x/engine.py", line 3, in run'),
        ('I1121 03:34:13.341869 10628 server.cc:642] "loading"', ""),
        ("I1121 03:34:13.337587 10648 pb_stub.cc:298]  Failed to initialize Python stub", ""),
        ("At:", ""),
        ("  /x/y.py(14): <module>", ""),
        ("  <frozen importlib._bootstrap>(241): _call", ""),
        ("E1121 1 1 a.cc:1] Failed to initialize NVML: NVML_ERROR", ""),
        ("W1121 1 1 pinned_memory_manager.cc:271] Unable to allocate pinned memory", ""),
        ("E1121 1 1 cuda.cc:1] CUDA driver version is insufficient", ""),
        ("Signal (15) received.", ""),
        ("", ""),
    ],
)
def test_the_user_sees_what_matters_of_tritons_log(line: str, seen: str) -> None:
    assert essence(line) == seen


@pytest.mark.parametrize(("verbose", "lines"), [(False, ["plain"]), (True, ["I1121 1 1 a.cc:1] x", "plain"])])
def test_verbose_shows_all_of_it(verbose: bool, lines: list[str]) -> None:
    shown: list[str] = []
    log = TritonLog(io.StringIO("I1121 1 1 a.cc:1] x\n\nplain\n"), shown.append, verbose=verbose)
    assert log.last_words().splitlines() == lines
    assert shown == lines


@pytest.mark.parametrize(
    ("model", "line"),
    [
        (ModelStatus("m", "1", ready=True, reason=""), "  m version 1: ready"),
        (ModelStatus("m", "1", ready=False, reason="bad\nmore"), "  m version 1: not served: bad"),
        (ModelStatus("m", "", ready=False, reason=""), "  m: not served: see above"),
    ],
)
def test_a_models_status_is_one_line(model: ModelStatus, line: str) -> None:
    assert status_line(model) == line

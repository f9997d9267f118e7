import http.client
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import closing

import pytest
import structlog
from pydantic import ValidationError

from gateway import logs
from gateway.__main__ import main
from gateway.settings import Settings, is_loopback
from tests.ports import free_ports


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("TRIDENT_"):
            monkeypatch.delenv(name)
    return tmp_path


def test_options_win_over_environment_over_file_over_defaults(empty_directory, monkeypatch):
    assert Settings().port == 8000
    (empty_directory / "config.yaml").write_text("port: 1\nurl: file:1\nlog_level: error\n")
    monkeypatch.setenv("TRIDENT_PORT", "2")
    monkeypatch.setenv("TRIDENT_URL", "environment:2")
    settings = Settings(port=3)
    assert (settings.port, settings.url, settings.log_level) == (3, "environment:2", "error")


@pytest.mark.parametrize(
    ("file", "environment", "arguments", "words"),
    [
        ("prot: 1", {}, [], "prot: Extra inputs are not permitted"),
        ("port: many", {}, [], "port: Input should be a valid integer"),
        ("", {"TRIDENT_PROT": "1"}, [], "no such setting: TRIDENT_PROT; known: TRIDENT_HOST"),
        ("", {"TRIDENT_PORT": "70000"}, [], "port: Input should be less than"),
        ("", {}, ["--host", "0.0.0.0"], "no authentication yet"),
        ("host: example.org", {}, [], "allow_public"),
    ],
)
def test_wrong_settings_end_with_one_sentence(
    empty_directory, monkeypatch, capsys, *, file, environment, arguments, words
):
    (empty_directory / "config.yaml").write_text(file)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert main(arguments) == 2
    assert words in capsys.readouterr().err


def test_a_public_address_needs_to_be_meant():
    with pytest.raises(ValidationError, match="no authentication yet"):
        Settings(host="::")
    assert Settings(host="::", allow_public=True).host == "::"


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.1.2.3", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("a.b", False),
    ],
)
def test_loopback_is_recognised(host, loopback):
    assert is_loopback(host) is loopback


@pytest.fixture
def restored_logging():
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def gateway():
    """A gateway as a process, and its port."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "gateway", "--port", str(port), "--url", "127.0.0.1:9"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process, port
        finally:
            process.kill()


def test_the_process_serves_logs_json_and_ends_when_told(gateway):
    process, port = gateway
    status = wait_for_status(f"http://127.0.0.1:{port}/livez")
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=20)
    assert (status, process.returncode) == (200, 0)
    lines = [json.loads(line) for line in output.splitlines()]
    (request,) = [line for line in lines if line["event"] == "request"]
    assert (request["path"], request["level"], len(request["request_id"])) == ("/livez", "info", 32)


def test_the_process_serves_on_when_nobody_reads_its_log(gateway):
    process, port = gateway
    wait_for_status(f"http://127.0.0.1:{port}/livez")
    process.stdout.close()
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=5)) as connection:
        for _ in range(3):
            connection.request("GET", "/livez")
            assert connection.getresponse().read() == b'{"status":"alive"}'


def wait_for_status(url):
    deadline = time.monotonic() + 30
    while True:
        try:
            return urllib.request.urlopen(url, timeout=5).status
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.mark.usefixtures("restored_logging")
def test_library_records_are_json_too(capsys):
    logs.configure("warning")
    logging.getLogger("somebody").warning("it is %s", "late")
    logging.getLogger("somebody").info("unheard")
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "it is late"

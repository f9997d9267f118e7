"""The embedded Triton server; nothing of it outlives the process that started it."""

import http.client
import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn

from backends.child import ChildGroup
from backends.environment import ServerError, inspect_environment
from backends.lease import take
from backends.settings import (
    EXIT_SECONDS,
    ServerSettings,
    check_settings,
    command_line,
    engine_variables,
    variables_for,
)
from backends.shared_memory import prefix_for, remove_regions, remove_stale_regions
from backends.stubs import StubWatch
from backends.triton_log import TritonLog

POLL_SECONDS = 0.05
WATCH_SECONDS = 0.5
# Triton counts EXIT_SECONDS itself, then ends its stubs.
GRACE_SECONDS = EXIT_SECONDS + 5.0


@dataclass(frozen=True)
class ModelStatus:
    """One version of a model as Triton's repository index reports it."""

    name: str
    version: str
    ready: bool
    reason: str


class EmbeddedServer:
    """tritonserver with our backends; a context manager, inside which `models` says what was loaded.

    Raises ServerError where it can't start. A model that fails to load doesn't keep others from being served.
    """

    def __init__(self, settings: ServerSettings, show: Callable[[str], None] = print) -> None:
        check_settings(settings)
        remove_stale_regions()
        environment = inspect_environment(settings.environment)
        self._lease = take(environment, settings.assembled)
        self.settings = settings
        self.models: list[ModelStatus] = []
        self._shm_prefix = prefix_for(os.getpid(), settings.grpc_port)
        self._child = ChildGroup(
            command_line(settings, environment, backends=self._lease.directory, shm_prefix=self._shm_prefix),
            variables=variables_for(environment, dict(os.environ)) | engine_variables(settings),
            # Triton's stub imports from its working directory first: it must not find this checkout there.
            directory=self._lease.directory,
        )
        self._log = TritonLog(self._child.output, show, verbose=settings.verbose)

    @property
    def pid(self) -> int:
        return self._child.pid

    def __enter__(self) -> "EmbeddedServer":
        try:
            self._await_live()
            self.models = self._index()
            self._stubs = StubWatch(self.pid)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def wait(self) -> NoReturn:
        """Watches the server until it dies, or a model's process does; raises ServerError that says how."""
        while True:
            how = self._child.ended()
            if how:
                raise ServerError(f"Triton stopped by itself ({how}):\n{self._log.last_words()}")
            crashed = self._stubs.crashed()
            if crashed:
                raise ServerError(
                    f"the process of {' and '.join(crashed)} crashed; Triton can't go on without it"
                )
            time.sleep(WATCH_SECONDS)

    def stop(self) -> None:
        """Ends the server; afterwards no process and no shared memory of it is left."""
        self._child.stop(GRACE_SECONDS)
        self._log.end()
        remove_regions(self._shm_prefix)
        self._lease.release()

    def _await_live(self) -> None:
        """Triton opens its ports after it has tried to load every model."""
        deadline = time.monotonic() + self.settings.ready_seconds
        while not self._is_live():
            how = self._child.ended()
            if how:
                raise ServerError(f"Triton ended during its start ({how}):\n{self._log.last_words()}")
            if time.monotonic() > deadline:
                raise ServerError(
                    f"Triton is not ready after {self.settings.ready_seconds:g} s; see --ready-seconds"
                )
            time.sleep(POLL_SECONDS)

    def _is_live(self) -> bool:
        try:
            return self._call("GET", "/v2/health/live")[0] == http.HTTPStatus.OK
        except (OSError, http.client.HTTPException):
            return False

    def _index(self) -> list[ModelStatus]:
        _, body = self._call("POST", "/v2/repository/index")
        return [
            ModelStatus(
                name=entry["name"],
                version=entry.get("version", ""),
                ready=entry.get("state") == "READY",
                reason=entry.get("reason", ""),
            )
            for entry in json.loads(body)
        ]

    def _call(self, method: str, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(self.settings.host, self.settings.http_port, timeout=10)
        try:
            connection.request(method, path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

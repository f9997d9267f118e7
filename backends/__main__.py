"""`python -m backends serve`: the embedded Triton server in the foreground."""

import argparse
import signal
import sys
from dataclasses import fields
from pathlib import Path
from types import FrameType

from backends.environment import ServerError
from backends.server import EmbeddedServer, ModelStatus
from backends.settings import ServerSettings


def main(arguments: list[str] | None = None) -> int:
    """Serves until SIGINT or SIGTERM. Exit code 0, or 1 with one sentence on standard error."""
    options = vars(parser().parse_args(arguments))
    options.pop("command")
    signal.signal(signal.SIGTERM, interrupt)
    try:
        serve(ServerSettings(**options))
    except KeyboardInterrupt:
        return 0
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def serve(settings: ServerSettings) -> None:
    say(f"Starting Triton with {settings.repository} …")
    with EmbeddedServer(settings, show=say) as server:
        for model in server.models:
            say(status_line(model))
        say(
            f"Triton is ready: gRPC {settings.host}:{settings.grpc_port}, HTTP :{settings.http_port}, "
            f"metrics :{settings.metrics_port}"
        )
        server.wait()


def status_line(model: ModelStatus) -> str:
    version = f" version {model.version}" if model.version else ""
    state = "ready" if model.ready else f"not served: {model.reason.partition(chr(10))[0] or 'see above'}"
    return f"  {model.name}{version}: {state}"


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def parser() -> argparse.ArgumentParser:
    defaults = {field.name: field.default for field in fields(ServerSettings)}
    top = argparse.ArgumentParser(prog="python -m backends", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    serve_parser = commands.add_parser("serve", help="run the embedded Triton server in the foreground")
    add = serve_parser.add_argument
    add("--repository", type=Path, default=Path("model_repository"), help="the model repository")
    add("--host", default=defaults["host"], help="address to listen on")
    add("--grpc-port", type=int, default=defaults["grpc_port"])
    add("--http-port", type=int, default=defaults["http_port"])
    add("--metrics-port", type=int, default=defaults["metrics_port"])
    add(
        "--environment",
        type=Path,
        default=defaults["environment"],
        help="the server's own Python environment",
    )
    add(
        "--session-directory",
        type=Path,
        default=defaults["session_directory"],
        help="where chats with a session id are kept over a restart; by default nowhere",
    )
    add("--ready-seconds", type=float, default=defaults["ready_seconds"], help="how long loading may take")
    add("--verbose", action="store_true", help="show all that Triton says")
    return top


if __name__ == "__main__":
    sys.exit(main())

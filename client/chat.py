"""Conversations in a terminal: one answer, or many turns with a history."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from typing import IO, Any

from rich.console import Console

from client.triton import AsyncTritonClient
from client.uncertainty import described, require_told
from client.wire import GenerateRequest, GenerateResponse, WireError

DEFAULT_MODEL = "smollm2"

# A model may say anything: what would move a terminal's cursor or change its state is left out.
_TERMINAL_CONTROLS = {code: None for code in [*range(32), *range(127, 160)] if chr(code) not in "\n\t"}

Message = dict[str, str]


def served_models(url: str) -> list[str]:
    """Return the names of the served models; raises WireError `unavailable`."""

    async def ask() -> list[str]:
        async with AsyncTritonClient(url) as client:
            return await client.models()

    return asyncio.run(ask())


async def choose(client: AsyncTritonClient, wanted: str | None) -> str:
    """Return the model to talk to; WireError `not_found` lists the served ones."""
    served = await client.models()
    name = wanted or (DEFAULT_MODEL if DEFAULT_MODEL in served or len(served) != 1 else served[0])
    if name not in served:
        listed = ", ".join(served) or "none; install one by `trident export`"
        raise WireError("not_found", "model", f"{name!r} is not served; served: {listed}")
    return name


def say_once(
    url: str,
    model: str | None,
    prompt: str,
    *,
    raw: bool,
    system: str | None,
    sampling: Mapping[str, Any],
    show_uncertainty: bool = False,
) -> None:
    """Write one answer to standard output as it comes, its figures to standard error; raises WireError."""
    content = {"text_input": prompt} if raw else {"messages": [*_system(system), _user(prompt)]}
    request = GenerateRequest(**content, **sampling, stream=True)

    async def run() -> GenerateResponse:
        last = GenerateResponse()
        async with AsyncTritonClient(url) as client:
            name = await choose(client, model)
            if show_uncertainty:
                await require_told(client, name)
            async with aclosing(client.generate(name, request)) as responses:
                async for last in responses:
                    write(sys.stdout, last.text_output)
        return last

    last = asyncio.run(run())
    write(sys.stdout, "\n")
    if show_uncertainty:
        print(described(last), file=sys.stderr)


def write(output: IO[str], text: str) -> None:
    """Write a piece of an answer at once; to a terminal without control characters."""
    output.write(text.translate(_TERMINAL_CONTROLS) if output.isatty() else text)
    output.flush()


def converse(
    url: str,
    model: str | None,
    *,
    system: str | None,
    sampling: Mapping[str, Any],
    show_uncertainty: bool = False,
) -> None:
    """Read turns from the terminal until /quit, Ctrl-D or Ctrl-C at the prompt; raises WireError."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  # line editing and history for input()

    with asyncio.Runner() as runner:
        client = runner.run(_connect(url))
        try:
            name = runner.run(choose(client, model))
            if show_uncertainty:
                runner.run(require_told(client, name))
            generate, console = _generation(client, name, sampling), Console(highlight=False)
            Chat(runner, generate, console, system, show_uncertainty=show_uncertainty).run(name)
        finally:
            runner.run(client.close())


Generate = Callable[[list[Message]], AsyncGenerator[GenerateResponse, None]]


class Chat:
    """A conversation with its history; what the person saw of a stopped answer stays in it."""

    def __init__(
        self,
        runner: asyncio.Runner,
        generate: Generate,
        console: Console,
        system: str | None,
        *,
        show_uncertainty: bool,
    ) -> None:
        self._runner = runner
        self._generate = generate
        self._console = console
        self._system = _system(system)
        self._shows_uncertainty = show_uncertainty
        self.messages = list(self._system)

    def run(self, model: str) -> None:
        """Take turns until the person quits."""
        self._console.print(f"[bold]{model}[/bold] [dim]· /help lists the commands[/dim]")
        while (line := self._read()) is not None:
            command = COMMANDS.get(line)
            if command is not None:
                if not command(self):
                    return
            elif line.startswith("/"):
                self._note(f"no command {line}; known: {', '.join(COMMANDS)}")
            elif line:
                self._turn(line)

    def reset(self) -> bool:
        """Forget the conversation."""
        self.messages = list(self._system)
        self._note("a new conversation")
        return True

    def help(self) -> bool:
        """List the commands."""
        for name, command in COMMANDS.items():
            self._note(f"{name:<7} {command.__doc__}")
        self._note("Ctrl-C stops an answer; at the prompt it quits.")
        return True

    def quit(self) -> bool:
        """Leave."""
        return False

    def _read(self) -> str | None:
        try:
            return self._console.input("[bold cyan]›[/bold cyan] ").strip()
        except (EOFError, KeyboardInterrupt):
            self._console.print()
            return None

    def _turn(self, text: str) -> None:
        self.messages.append(_user(text))
        said: list[str] = []
        try:
            self._runner.run(self._answer(said))
        except KeyboardInterrupt:
            self._note("\nstopped")
        except WireError as error:
            self._console.print(f"{error.field}: {error.message}", style="red", markup=False)
        if said:
            self.messages.append({"role": "assistant", "content": "".join(said)})
        else:
            self.messages.pop()

    async def _answer(self, said: list[str]) -> None:
        last = GenerateResponse()
        async with aclosing(self._generate(self.messages)) as responses:
            async for last in responses:
                write(self._console.file, last.text_output)
                if last.text_output:
                    said.append(last.text_output)
        self._console.print()
        if last.finish_reason == "length":
            self._note("cut off at the most tokens allowed")
        if self._shows_uncertainty:
            self._note(described(last))

    def _note(self, text: str) -> None:
        self._console.print(text, style="dim", markup=False)


COMMANDS: dict[str, Callable[[Chat], bool]] = {"/reset": Chat.reset, "/help": Chat.help, "/quit": Chat.quit}


async def _connect(url: str) -> AsyncTritonClient:
    return AsyncTritonClient(url)


def _generation(client: AsyncTritonClient, model: str, sampling: Mapping[str, Any]) -> Generate:
    def generate(messages: list[Message]) -> AsyncGenerator[GenerateResponse, None]:
        return client.generate(model, GenerateRequest(messages=messages, **sampling, stream=True))

    return generate


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _system(text: str | None) -> list[Message]:
    return [{"role": "system", "content": text}] if text is not None else []

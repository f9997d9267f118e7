"""Whether a chat template renders. It is code of the checkpoint's author: a process of its own runs it.

`python -m export.formats.chat_template` renders what standard input holds, in a sandbox and under limits.
"""

import json
import resource
import subprocess
import sys
from collections.abc import Mapping
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from export.errors import ExportError

MAX_SECONDS, MAX_BYTES = 10, 1 << 30
QUESTION = "Which river runs through Paris?"
CONVERSATION = (
    {"role": "user", "content": "Hello"},
    {"role": "assistant", "content": "Hello, what is it?"},
    {"role": "user", "content": QUESTION},
)


def check_chat_template(template: str, config: Mapping[str, object]) -> str:
    """What `template` makes of a short conversation; `config` is tokenizer_config.json.

    Raises ExportError if it fails, takes too long, or leaves out what the user said last.
    """
    names = {name: _content(token) for name, token in config.items() if name.endswith("_token")}
    variables = {name: text for name, text in names.items() if isinstance(text, str)}
    request = json.dumps({"template": template, "variables": variables})
    command = [sys.executable, "-m", "export.formats.chat_template"]
    try:
        done = subprocess.run(
            command, input=request, capture_output=True, text=True, timeout=MAX_SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        raise ExportError(f"the chat template takes more than {MAX_SECONDS} seconds") from None
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2] or f"it ended with {done.returncode}"
        raise ExportError(f"the chat template does not render: {reason}; --chat-template FILE replaces it")
    rendered: str = json.loads(done.stdout)
    if QUESTION not in rendered:
        raise ExportError(f"the chat template leaves out what the user said: it makes {rendered[:80]!r}")
    return rendered


def _content(token: object) -> object:
    return token.get("content") if isinstance(token, dict) else token


class Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; here it only has content."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration is a class attribute of type set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        """The statements inside."""
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def render(template: str, variables: Mapping[str, Any]) -> str:
    """The prompt for CONVERSATION, in Hugging Face's dialect."""
    sandbox = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation]
    )
    sandbox.filters["tojson"] = json.dumps
    sandbox.globals |= {"raise_exception": _refuse, "strftime_now": datetime.now().strftime}
    return sandbox.from_string(template).render(
        messages=CONVERSATION, tools=None, documents=None, add_generation_prompt=True, **variables
    )


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def main() -> None:
    """Render standard input's template under a limit of memory; an error is one line and exit code 1."""
    request = json.load(sys.stdin)
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    try:
        print(json.dumps(render(request["template"], request["variables"])))
    except Exception as error:  # whatever the template may raise
        sys.exit(f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")


if __name__ == "__main__":
    main()

"""Hugging Face's dialect of Jinja in a sandbox, with bounds on how long and how much a template works.

The bounds stop accidents and hostile conversations. The template itself comes with the model that the
operator installed: the sandbox keeps it from the machine, not from being slow.
"""

import itertools
import json
from collections.abc import Callable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError, nodes
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 100_000
MAX_CHARACTERS = 4 << 20
STEP = "__step__"


class RefusalError(TemplateError):
    """The template's own `raise_exception`: what it doesn't like about the messages."""


class OutOfBoundsError(TemplateError):
    """The conversation makes the template work or write more than it may."""


class Generation(Extension):
    """`{% generation %}` marks the assistant's words for training; a prompt only needs what is inside."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's own declaration is a class attribute of type set

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, Generation])
        self.filters["tojson"] = to_json
        self.globals |= {"raise_exception": refuse, "strftime_now": strftime_now}

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Products of numbers only: `"a" * 10**9` is not a template's business."""
        if operator == "**" or not isinstance(left, int | float) or not isinstance(right, int | float):
            raise SecurityError(f"{type(left).__name__} {operator} {type(right).__name__} is not allowed")
        return left * right


class CountSteps(NodeTransformer):
    """Has every loop and macro body call the step counter first."""

    def count(self, node: nodes.For | nodes.Macro) -> nodes.Node:
        self.generic_visit(node)
        call = nodes.Call(nodes.Name(STEP, "load"), [], [], None, None)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node

    visit_For = visit_Macro = count  # noqa: N815 - Jinja looks its visitors up by node name


class BoundedTemplate:
    """A compiled template whose every rendering is bounded."""

    def __init__(self, source: str) -> None:
        environment = Sandbox()
        try:
            tree = environment.parse(source)
            values = {node.value for node in tree.find_all(nodes.Const)}
            self.knows_tools = any(name.name == "tools" for name in tree.find_all(nodes.Name))
            self.literals = {value for value in values if isinstance(value, str)}
            self.template = environment.from_string(CountSteps().visit(tree))
        except TemplateSyntaxError as error:
            raise ValueError(f"broken at line {error.lineno}: {error.message}") from error

    def render(self, **variables: object) -> str:
        """Raises RefusalError, OutOfBoundsError, or whatever else the template does wrong."""
        pieces: list[str] = []
        room = MAX_CHARACTERS
        for piece in self.template.generate(**variables, **{STEP: step_counter()}):
            pieces.append(piece)
            room -= len(piece)
            if room < 0:
                raise OutOfBoundsError(f"the chat template writes more than {MAX_CHARACTERS} characters")
        return "".join(pieces)


def step_counter() -> Callable[[], None]:
    steps = itertools.count(1)

    def step() -> None:
        if next(steps) > MAX_STEPS:
            raise OutOfBoundsError(f"the chat template takes more than {MAX_STEPS} steps")

    return step


def refuse(message: object) -> NoReturn:
    raise RefusalError(str(message))


def strftime_now(layout: str) -> str:
    return datetime.now().strftime(layout)


def to_json(value: object, ensure_ascii: bool = False, indent: int | None = None) -> str:
    """Plain JSON; Jinja's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent)

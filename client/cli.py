"""The `trident` command: talk to a served model, serve, and hand over to the trainer and the exporter."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from client.wire import WireError

# Each command imports what it needs: serving must not wait for gRPC, nor a help text for either.

PASS_ON = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From PyTorch blocks to a chat service on Triton.",
)

Url = Annotated[str, typer.Option(envvar="TRIDENT_URL", help="Triton's gRPC address.")]
Model = Annotated[
    str | None, typer.Option(help="A served model; by default smollm2, or the only one there is.")
]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="The most tokens to generate.")]
Temperature = Annotated[float | None, typer.Option(min=0, max=2, help="0 is greedy.")]
TopP = Annotated[float | None, typer.Option(max=1, help="Draw from the likeliest tokens of this total.")]
Seed = Annotated[int | None, typer.Option(min=0, max=2**64 - 1, help="The same seed gives the same text.")]
System = Annotated[str | None, typer.Option(help="A system message before the conversation.")]
ShowUncertainty = Annotated[
    bool,
    typer.Option("--show-uncertainty", help="After an answer, one line on how sure the model was of it."),
]
Evidence = Annotated[
    list[str] | None,
    typer.Option(
        "--evidence",
        "-e",
        help="A text that the prompt builds on, or @FILE; may be given again. It goes where the prompt says "
        "{evidence}, else before the prompt.",
    ),
]
Permutations = Annotated[
    int | None, typer.Option(min=1, help="Average the answer over this many orders of the evidence.")
]
JsonSchema = Annotated[
    str | None, typer.Option("--json-schema", help="The answer is JSON that keeps to this schema, or @FILE.")
]
Regex = Annotated[str | None, typer.Option(help="The answer matches this regular expression (Rust's).")]
Choices = Annotated[
    list[str] | None, typer.Option("--choice", help="The answer is this; may be given again: one of these.")
]
Grammar = Annotated[
    str | None, typer.Option(help="The answer keeps to this Lark grammar of llguidance's, or @FILE.")
]

DEFAULT_URL = "127.0.0.1:8001"


@app.command()
def chat(
    model: Model = None,
    url: Url = DEFAULT_URL,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    show_uncertainty: ShowUncertainty = False,
) -> None:
    """Talk to a model. Ctrl-C stops an answer, at the prompt it quits; /help lists the commands."""
    from client.chat import converse

    sampling = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
    converse(url, model, system=system, sampling=sampling, show_uncertainty=show_uncertainty)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The prompt; - reads it from standard input.")],
    model: Model = None,
    url: Url = DEFAULT_URL,
    raw: Annotated[
        bool, typer.Option("--raw", help="Send the prompt as it is, without chat template.")
    ] = False,
    system: System = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    seed: Seed = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given again.")] = None,
    evidence: Evidence = None,
    permutations: Permutations = None,
    json_schema: JsonSchema = None,
    regex: Regex = None,
    choice: Choices = None,
    grammar: Grammar = None,
    show_uncertainty: ShowUncertainty = False,
) -> None:
    """Generate one answer to standard output, as it comes."""
    from client.chat import say_once
    from client.evidence import read_blocks, with_place
    from client.guide import guide_fields

    if raw and system is not None:
        raise typer.BadParameter(
            "a raw prompt has no roles; leave out --system or --raw", param_hint="--system"
        )
    if permutations is not None and not evidence:
        raise typer.BadParameter("give the evidence to permute, too", param_hint="--permutations")
    text = sys.stdin.read() if prompt == "-" else prompt
    blocks = read_blocks(evidence) if evidence else None
    sampling: dict[str, Any] = {
        "max_tokens": max_tokens,
        "temperature": temperature,
        "top_p": top_p,
        "seed": seed,
        "stop_words": stop or None,
        "evidence": blocks,
        "num_permutations": permutations,
        **guide_fields(json_schema=json_schema, regex=regex, choices=choice, grammar=grammar),
    }
    say_once(
        url,
        model,
        with_place(text, beside=system) if blocks else text,
        raw=raw,
        system=system,
        sampling=sampling,
        show_uncertainty=show_uncertainty,
    )


@app.command()
def models(url: Url = DEFAULT_URL) -> None:
    """List the models that are served, one a line."""
    from client.chat import served_models

    for name in served_models(url):
        print(name)


@app.command()
def serve(
    model: Annotated[str, typer.Option(help="Exported first if it isn't installed yet.")] = "smollm2",
    precision: Annotated[
        str | None, typer.Option(help="int8, int4 or fp32; by default what is installed, else int8.")
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65535, help="The gateway's HTTP port.")] = 8000,
    grpc_port: Annotated[int, typer.Option(min=1, max=65535, help="Triton's gRPC port.")] = 8001,
    metrics_port: Annotated[int, typer.Option(min=1, max=65535, help="Triton's metrics port.")] = 8002,
    http_port: Annotated[int, typer.Option(min=1, max=65535, help="Triton's HTTP port.")] = 8003,
    repository: Annotated[
        Path | None, typer.Option(help="The model repository; default: the checkout's.")
    ] = None,
    session_directory: Annotated[
        Path | None,
        typer.Option(help="Where chats with a session id outlive a restart; by default they don't."),
    ] = None,
    verbose: Annotated[bool, typer.Option("--verbose", help="Show all that the processes say.")] = False,
) -> None:
    """Export a model if needed, then run Triton and the gateway until Ctrl-C."""
    from client.serve import Plan, serve

    ports = {
        "--port": port,
        "--grpc-port": grpc_port,
        "--metrics-port": metrics_port,
        "--http-port": http_port,
    }
    plan = Plan(
        model=model,
        precision=precision,
        ports=ports,
        session_directory=session_directory,
        verbose=verbose,
    )
    serve(plan if repository is None else plan.in_repository(repository))


@app.command(context_settings=PASS_ON)
def train(context: typer.Context) -> None:
    """Train a model: all arguments go to `python -m training train`."""
    _become("training", "train", *context.args)


@app.command(context_settings=PASS_ON)
def evaluate(context: typer.Context) -> None:
    """Measure a trained model again: all arguments go to `python -m training evaluate`."""
    _become("training", "evaluate", *context.args)


@app.command(context_settings=PASS_ON)
def presets(context: typer.Context) -> None:
    """List the named architectures with their true sizes."""
    _become("training", "presets", *context.args)


@app.command(context_settings=PASS_ON)
def export(context: typer.Context) -> None:
    """Prove, quantize and install a model: all arguments go to `python -m export`."""
    _become("export", *context.args)


@app.command("import", context_settings=PASS_ON)
def import_checkpoint(context: typer.Context) -> None:
    """Prove and install a checkpoint from a directory, a file or hf://ORG/NAME; --help says how."""
    _become("export.import_command", *context.args)


@app.command(context_settings=PASS_ON)
def convert(context: typer.Context) -> None:
    """Write a checkpoint of any known format as a model directory to train on; --help says how."""
    _become("export.convert_command", *context.args)


@app.command(context_settings=PASS_ON)
def merge(context: typer.Context) -> None:
    """Make one model of an adapter and its base: all arguments go to `python -m training merge`."""
    _become("training", "merge", *context.args)


@app.command(context_settings=PASS_ON)
def inspect(context: typer.Context) -> None:
    """Say what a checkpoint is and how it would be served, without reading its weights."""
    _become("export.inspect_command", *context.args)


def main() -> None:
    """Run the command line; exit code 0 is success, 1 a failure told in one sentence, 2 wrong usage."""
    try:
        app()
    except WireError as error:
        sys.exit(
            f"trident: {error.message}"
            if error.field == "server"
            else f"trident: {error.field}: {error.message}"
        )


def _become(module: str, *arguments: str) -> NoReturn:
    """Replace this process, so that signals and the exit code need no passing on."""
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])

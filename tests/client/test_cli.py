"""The `trident` command over a Triton double: what it sends, prints and exits with."""

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from client import chat, cli
from client.chat import COMMANDS, write

SAID = [{"text_output": "Par"}, {"text_output": "is 🙂", "finish_reason": "stop"}]


@pytest.fixture
def trident(triton, monkeypatch, capsys):
    """Run the command line in this process; returns its exit code, output and errors."""
    monkeypatch.delenv("TRIDENT_URL", raising=False)
    triton.script = SAID

    def run(*arguments, stdin="", url=True):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        where = ["--url", triton.url] if url else []
        monkeypatch.setattr(sys, "argv", ["trident", *arguments, *where])
        try:
            code = cli.main()
        except SystemExit as ended:
            code = ended.code
        output, errors = capsys.readouterr()
        # the interpreter prints a text and exits with 1
        return (1, output, errors + code) if isinstance(code, str) else (code or 0, output, errors)

    return run


def sent(triton):
    (_, _, inputs) = triton.requests[-1]
    lists = {"stop_words", "evidence"}
    return {name: values if name in lists else values[0] for name, (_, _, values) in inputs.items()}


def test_generate_applies_the_chat_template_and_prints_the_text(trident, triton):
    assert trident("generate", "Capital?", "--system", "Be brief.") == (0, "Paris 🙂\n", "")
    inputs = sent(triton)
    assert json.loads(inputs.pop("messages")) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital?"},
    ]
    assert inputs == {"stream": True}


def test_generate_raw_sends_the_prompt_and_every_option_as_it_is(trident, triton):
    sampling = ["--max-tokens", "5", "--temperature", "0.5", "--top-p", "0.25", "--seed", "7"]
    options = [*sampling, "--stop", "A", "--stop", "B", "--model", "toy"]
    assert trident("generate", "-", "--raw", *options, stdin="The capital")[0] == 0
    assert sent(triton) == {
        "text_input": "The capital",
        "max_tokens": 5,
        "temperature": 0.5,
        "top_p": 0.25,
        "seed": 7,
        "stop_words": ["A", "B"],
        "stream": True,
    }


MEAN = {"confidence": 0.70567, "epistemic": 0.0021, "aleatoric": 0.2}
TOLD = [
    {"text_output": "Par", "uncertainty": json.dumps({"tokens": {}, "mean": None}), "cot_budget": 92},
    {
        "text_output": "is",
        "finish_reason": "stop",
        "uncertainty": json.dumps({"tokens": {}, "mean": MEAN}),
        "cot_budget": 92,
    },
]
LINE = "confidence 0.706 · epistemic 0.0021 · aleatoric 0.2 · thought budget 92 tokens"


def test_uncertainty_is_one_line_on_standard_error_so_that_a_pipe_gets_the_answer_alone(trident, triton):
    triton.script, triton.telling = TOLD, {"toy"}
    assert trident("generate", "Hi", "--show-uncertainty") == (0, "Paris\n", f"{LINE}\n")
    assert trident("generate", "Hi") == (0, "Paris\n", "")


def test_a_chat_shows_the_uncertainty_of_each_answer(trident, triton):
    triton.script, triton.telling = TOLD, {"toy"}
    code, output, _ = trident("chat", "--show-uncertainty", stdin="One\nTwo\n")
    assert (code, output.count(LINE)) == (0, 2)
    assert LINE not in trident("chat", stdin="One\n")[1]


def test_an_empty_answer_has_its_budget_only(trident, triton):
    told = json.dumps({"tokens": {}, "mean": None})
    triton.script = [{"finish_reason": "stop", "uncertainty": told, "cot_budget": 7}]
    triton.telling = {"toy"}
    assert trident("generate", "Hi", "--show-uncertainty") == (0, "\n", "thought budget 7 tokens\n")


@pytest.mark.parametrize("command", [["generate", "Hi"], ["chat"]])
def test_a_model_that_tells_no_uncertainty_is_refused_in_a_sentence_that_lists_those_that_do(
    trident, triton, command
):
    code, output, errors = trident(*command, "--show-uncertainty", "--model", "toy")
    assert (code, output) == (1, "")
    assert errors == (
        "trident: model: 'toy' does not tell its uncertainty; "
        "served that do: none; a model with bayesian_attention does"
    )
    triton.ready |= {"other": "READY", "other_engine": "READY"}
    triton.telling = {"other"}
    assert "served that do: other" in trident(*command, "--show-uncertainty", "--model", "toy")[2]
    assert triton.requests == []


@pytest.mark.parametrize(
    ("prompt", "content"),
    [("Where?", "{evidence}\n\nWhere?"), ("By {evidence} say.", "By {evidence} say.")],
)
def test_evidence_goes_to_its_place_and_files_are_read(trident, triton, tmp_path, prompt, content):
    (tmp_path / "block.txt").write_text("from ä file\n")
    evidence = ["-e", "inline", "--evidence", f"@{tmp_path / 'block.txt'}", "--permutations", "2"]
    assert trident("generate", prompt, "--raw", *evidence)[0] == 0
    assert sent(triton) == {
        "text_input": content,
        "evidence": ["inline", "from ä file"],
        "num_permutations": 2,
        "stream": True,
    }


@pytest.mark.parametrize(
    ("options", "kind", "guide"),
    [
        (["--regex", "@[ab]+"], "regex", "@[ab]+"),
        (["--choice", "yes", "--choice", "nö"], "choice", '["yes", "n\\u00f6"]'),
        (["--grammar", 'start: "a"'], "grammar", 'start: "a"'),
        (["--json-schema", "@SCHEMA"], "json_schema", '{"type": "null"}'),
    ],
)
def test_the_form_of_an_answer_is_an_option(trident, triton, tmp_path, options, kind, guide):
    (tmp_path / "schema.json").write_text('{"type": "null"}\n')
    options = [option.replace("SCHEMA", str(tmp_path / "schema.json")) for option in options]
    assert trident("generate", "Say.", *options)[0] == 0
    inputs = sent(triton)
    assert (inputs["guided_decoding_guide_type"], inputs["guided_decoding_guide"]) == (kind, guide)


def test_two_forms_of_one_answer_and_a_missing_schema_are_one_sentence(trident):
    code, _, errors = trident("generate", "Say.", "--regex", "a", "--choice", "b")
    assert (code, errors) == (
        1,
        "trident: --regex and --choice: an answer has one form; give one of them",
    )
    code, _, errors = trident("generate", "Say.", "--json-schema", "@nowhere")
    assert (code, errors) == (1, "trident: --json-schema: nowhere can't be read: No such file or directory")


def test_evidence_may_have_its_place_in_the_system_message(trident, triton):
    trident("generate", "Where?", "--system", "Know: {evidence}", "-e", "a")
    contents = [message["content"] for message in json.loads(sent(triton)["messages"])]
    assert contents == ["Know: {evidence}", "Where?"]


def test_a_file_of_evidence_that_can_not_be_read_is_one_sentence(trident, triton, tmp_path):
    (tmp_path / "bytes").write_bytes(b"\xff")
    assert trident("generate", "Hi", "-e", "@nowhere") == (
        1,
        "",
        "trident: evidence: nowhere can't be read: No such file or directory",
    )
    assert "it is not UTF-8" in trident("generate", "Hi", "-e", f"@{tmp_path / 'bytes'}")[2]
    assert triton.requests == []


def test_models_are_listed_one_a_line(trident, triton):
    triton.ready |= {"other": "READY", "other_engine": "READY"}
    assert trident("models") == (0, "other\ntoy\n", "")


def test_several_models_and_none_named_is_a_failure_that_lists_them(trident, triton):
    triton.ready |= {"other": "READY", "other_engine": "READY"}
    code, _, errors = trident("generate", "Hi")
    assert code == 1
    assert "served: other, toy" in errors


def test_smollm2_is_the_model_when_none_is_named(trident, triton):
    triton.ready |= {"smollm2": "READY", "smollm2_engine": "READY"}
    assert trident("generate", "Hi")[0] == 0
    assert triton.requests[-1][0] == "smollm2"


def test_a_model_that_is_not_served_is_a_failure_that_lists_the_served(trident):
    assert trident("generate", "Hi", "--model", "gpt") == (
        1,
        "",
        "trident: model: 'gpt' is not served; served: toy",
    )


def test_an_error_of_the_server_is_one_sentence(trident, triton):
    triton.script = ["invalid: max_tokens: 9000 was given, allowed is 1 to 8191"]
    code, _, errors = trident("generate", "Hi")
    assert (code, errors) == (1, "trident: max_tokens: 9000 was given, allowed is 1 to 8191")


def test_a_server_that_is_away_is_one_sentence_that_says_how_to_start_it(trident, triton):
    triton.close()
    code, output, errors = trident("models")
    assert (code, output) == (1, "")
    assert "trident serve" in errors
    assert "\n" not in errors


def test_the_environment_names_the_server(trident, triton, monkeypatch):
    monkeypatch.setenv("TRIDENT_URL", triton.url)
    assert trident("models", url=False) == (0, "toy\n", "")


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate"],
        ["nothing"],
        ["generate", "Hi", "--max-tokens", "0"],
        ["generate", "x", "--raw", "--system", "s"],
        ["generate", "x", "--permutations", "2"],
        ["generate", "x", "-e", "a", "--permutations", "0"],
    ],
)
def test_wrong_usage_is_exit_code_2(trident, arguments):
    assert trident(*arguments)[0] == 2


def test_a_chat_remembers_its_turns_until_reset(trident, triton):
    code, output, _ = trident("chat", stdin="One\n\nTwo\n/reset\nThree\n/what\n/help\n/quit\nnever\n")
    conversations = [json.loads(inputs["messages"][2][0]) for _, _, inputs in triton.requests]
    contents = [[message["content"] for message in conversation] for conversation in conversations]
    assert contents == [["One"], ["One", "Paris 🙂", "Two"], ["Three"]]
    assert [message["role"] for message in conversations[1]] == ["user", "assistant", "user"]
    assert code == 0
    assert output.count("Paris 🙂") == 3
    assert "no command /what; known: /reset, /help, /quit" in output
    assert all(name in output for name in COMMANDS)


def test_a_chat_keeps_its_system_message_over_a_reset(trident, triton):
    trident("chat", "--system", "Be brief.", stdin="One\n/reset\nTwo\n")
    for _, _, inputs in triton.requests:
        assert json.loads(inputs["messages"][2][0])[0] == {"role": "system", "content": "Be brief."}


def test_a_chat_outlives_an_error_and_forgets_the_turn(trident, triton):
    triton.script = ["overloaded: queue: 64 wait"]
    code, output, _ = trident("chat", stdin="One\nTwo\n")
    assert (code, output.count("queue: 64 wait")) == (0, 2)
    assert len(json.loads(sent(triton)["messages"])) == 1


def test_a_chat_says_when_an_answer_was_cut_off(trident, triton):
    triton.script = [{"text_output": "Par", "finish_reason": "length"}]
    assert "cut off" in trident("chat", stdin="One\n")[1]


def test_ctrl_c_stops_an_answer_and_what_was_said_stays(trident, triton, monkeypatch):
    triton.script = [{"text_output": "Par"}, "forever"]

    def write_then_interrupt(output, text):
        write(output, text)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(chat, "write", write_then_interrupt)
    code, output, _ = trident("chat", stdin="One\nTwo\n")
    assert (code, output.count("stopped")) == (0, 2)
    assert [m["content"] for m in json.loads(sent(triton)["messages"])] == ["One", "Par", "Two"]
    assert len(triton.stops) == 2
    assert triton.running == {}


def test_a_terminal_gets_no_control_characters_and_a_pipe_gets_all():
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    terminal, pipe = Terminal(), io.StringIO()
    for output in (terminal, pipe):
        write(output, "a\x1b[2J\x07\x9b5n\n\tä")
    assert terminal.getvalue() == "a[2J5n\n\tä"
    assert pipe.getvalue() == "a\x1b[2J\x07\x9b5n\n\tä"


def test_a_reader_that_has_gone_ends_the_command_quietly(triton):
    triton.script = [{"text_output": "x" * 100_000}] * 20 + SAID
    command = [sys.executable, "-m", "client", "generate", "Hi", "--url", triton.url]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.read(10)
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert (process.wait(20), errors) == (1, b"")
    assert triton.running == {}


@pytest.mark.parametrize(
    ("given", "become"),
    [
        (["train", "atlas", "--steps", "5"], ["-m", "training", "train", "atlas", "--steps", "5"]),
        (["evaluate", "atlas"], ["-m", "training", "evaluate", "atlas"]),
        (["presets"], ["-m", "training", "presets"]),
        (["export", "--model", "atlas"], ["-m", "export", "--model", "atlas"]),
        (["export", "--help"], ["-m", "export", "--help"]),
    ],
)
def test_train_and_export_become_the_station_with_all_arguments(trident, monkeypatch, given, become):
    became = []
    monkeypatch.setattr(os, "execv", lambda program, arguments: became.append((program, arguments)))
    trident(*given, url=False)
    assert became == [(sys.executable, [sys.executable, *become])]

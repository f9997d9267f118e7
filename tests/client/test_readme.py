import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).parents[2] / "client" / "README.md"


def plain_script():
    return re.search(r"<!-- stream.py -->\n```python\n(.*?)```", README.read_text(), re.DOTALL)[1]


def run_plain_script(*arguments):
    command = [sys.executable, "-c", plain_script(), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_plain_script_is_fifteen_lines_without_trident():
    assert len([line for line in plain_script().splitlines() if line]) <= 15
    assert "trident" not in plain_script()
    assert not re.search(r"^(import|from) (client|gateway)", plain_script(), re.MULTILINE)


def test_the_plain_script_streams_the_text_and_ends(triton):
    triton.script = [
        {"text_output": "Größe", "finish_reason": ""},
        {"text_output": "!", "finish_reason": "stop"},
    ]
    ended = run_plain_script(triton.url, "toy", "Hi")
    assert (ended.returncode, ended.stdout) == (0, "Größe!"), ended.stderr
    ((model, _, inputs),) = triton.requests
    assert model == "toy"
    assert inputs == {
        "text_input": ("BYTES", (1, 1), ["Hi"]),
        "stream": ("BOOL", (1, 1), [True]),
        "max_tokens": ("INT32", (1, 1), [16]),
    }

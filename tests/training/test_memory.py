"""What is freed stays with the process: the next step does not page it in anew."""

import subprocess
import sys

COUNT_FAULTS = """
import resource, sys
import torch
from training.memory import keep_freed_memory

if sys.argv[1] == "keep":
    keep_freed_memory()
def faults_of_a_step():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    _ = [torch.ones(12_000_000) for _ in range(3)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([faults_of_a_step() for _ in range(5)][-1])
"""


def page_faults(mode: str) -> int:
    command = [sys.executable, "-c", COUNT_FAULTS, mode]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def test_freed_memory_is_used_again_without_page_faults() -> None:
    assert page_faults("keep") < 0.1 * page_faults("return")

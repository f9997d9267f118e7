"""Compiles guides in a process of its own, which a hostile one may take down without harm.

`python -m backends.causal_lm.guiding.guide_trial` reads a line {"tokenizer", "vocab_size", "eos"}, says {}
and answers each line {"grammar"} with {"error"}. A guide that needs more than the bounds ends the process.
"""

import json
import os
import resource
import sys

from llguidance import LLTokenizer

from backends.causal_lm.guiding.guide_tokens import compile_guide

CPU_SECONDS = 2
BYTES = 64 << 20
_PAGE = resource.getpagesize()


def main() -> None:
    """Serve until the other side closes the pipe."""
    os.nice(5)  # the engine's steps come first
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    setup = json.loads(sys.stdin.readline())
    tokenizer = LLTokenizer(setup["tokenizer"], n_vocab=setup["vocab_size"], eos_token=setup["eos"])
    resource.setrlimit(resource.RLIMIT_AS, (_address_space() + BYTES, resource.RLIM_INFINITY))
    print("{}", flush=True)
    for line in sys.stdin:
        _renew_cpu_time()
        matcher = compile_guide(json.loads(line)["grammar"], tokenizer=tokenizer)
        print(json.dumps({"error": matcher.get_error()}), flush=True)


def _address_space() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[0]) * _PAGE


def _renew_cpu_time() -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime) + 1 + CPU_SECONDS
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


if __name__ == "__main__":
    main()

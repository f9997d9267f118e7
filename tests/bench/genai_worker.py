"""Runs in the peers' environment: generates what each line of input asks for, answers with seconds."""

import json
import sys
import time
from pathlib import Path

import onnxruntime_genai as og


def main(directory: str, threads: str) -> None:
    """Load the model, print its vocabulary's size, then serve until standard input ends."""
    config = og.Config(directory)
    decoder = {"session_options": {"intra_op_num_threads": int(threads)}}
    config.overlay(json.dumps({"model": {"decoder": decoder}}))
    model = og.Model(config)
    print(json.loads((Path(directory) / "genai_config.json").read_text())["model"]["vocab_size"], flush=True)
    for line in sys.stdin:
        task = json.loads(line)
        print(seconds_for(model, task["prompts"], task["new_tokens"]), flush=True)


def seconds_for(model: og.Model, prompts: list[list[int]], new_tokens: int) -> float:
    """The time from the prompts to the last new token of each, greedy."""
    start = time.perf_counter()
    params = og.GeneratorParams(model)
    length = len(prompts[0]) + new_tokens
    params.set_search_options(batch_size=len(prompts), max_length=length, min_length=length, do_sample=False)
    generator = og.Generator(model, params)
    generator.append_tokens(prompts)
    count = 0
    while not generator.is_done():
        generator.generate_next_token()
        count += 1
    duration = time.perf_counter() - start
    assert count == new_tokens, f"{count} tokens came, {new_tokens} were asked for"
    return duration


if __name__ == "__main__":
    main(*sys.argv[1:])

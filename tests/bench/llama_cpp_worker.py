"""Runs in the peers' environment: the server inside the wheel `xllamacpp`, by llama-server's own options."""

import argparse
import sys

import xllamacpp


def main() -> None:
    """Serve until standard input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    for option in ("--port", "--threads", "--parallel", "--ctx-size"):
        parser.add_argument(option, type=int, required=True)
    options = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = options.model
    params.port = options.port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = options.threads
    params.n_parallel, params.n_ctx = options.parallel, options.ctx_size
    server = xllamacpp.Server(params)
    sys.stdin.read()
    del server


if __name__ == "__main__":
    main()

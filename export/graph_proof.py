"""Proves a stateless graph fit to be served. The graph is its author's: a process of its own runs it.

`python -m export.graph_proof GRAPH [EXAMPLE.npz]` prints a Proof as JSON, under a limit of memory.
"""

import resource
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from export.graph_report import Check
from export.proof_process import limit_memory, prove_apart
from export.random_inputs import NoInputsError, draw_inputs, read_example, sizes_of

MAX_SECONDS = 300
ROWS = 3

# Other kernels sum in another order: a share of the largest value, by the type that is computed in.
LIMIT, HALF_LIMIT = 1e-4, 5e-3

Arrays = dict[str, NDArray[Any]]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, ser_json_inf_nan="constants")


class Tensor(_Part):
    """An input or output by ONNX Runtime's name of its type; -1 is any size."""

    name: str
    type: str
    shape: tuple[int, ...]


class Proof(_Part):
    """What the graph takes and gives, whether its rows are independent, and how it compared."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    batches: bool
    checks: tuple[Check, ...]
    notes: tuple[str, ...]


def prove_graph(path: Path, size: int, example: Path | None) -> Proof:
    """Run the graph at `path`, of `size` bytes with its weights, and return what was found.

    `example` is a .npz with an array per input; without one, inputs are drawn at random.
    Raises ExportError in one sentence, also where it takes too much time or memory.
    """
    return prove_apart(
        "export.graph_proof",
        str(path),
        str(size),
        *map(str, filter(None, [example])),
        seconds=MAX_SECONDS,
        proof=Proof,
        file=path.name,
        trouble="the graph can't be run",
    )


def examine(path: Path, example: Path | None) -> Proof:
    """The proof itself, in this process."""
    plain = _session(path, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
    served = _session(path, ort.GraphOptimizationLevel.ORT_ENABLE_ALL)
    inputs = tuple(map(_tensor, plain.get_inputs()))
    outputs = tuple(map(_tensor, plain.get_outputs()))
    feeds = read_example(example, plain.get_inputs()) if example else draw_inputs(plain)
    expected = _run(plain, feeds)
    checks = (
        _check("optimised against plain ONNX Runtime", expected, _run(served, feeds)),
        Check(name="asked twice", max_error=_distance(_run(served, feeds), _run(served, feeds)), limit=0),
    )
    if not all(tensor.shape[:1] == (-1,) for tensor in (*inputs, *outputs)):
        return Proof(inputs=inputs, outputs=outputs, batches=False, checks=checks, notes=())
    rows = _rows_check(served, feeds)
    notes = (
        () if rows.passed else (f"its rows depend on each other ({rows.max_error:.2g}): it is not batched",)
    )
    kept = (*checks, rows) if rows.passed else checks
    return Proof(inputs=inputs, outputs=outputs, batches=rows.passed, checks=kept, notes=notes)


def _rows_check(session: ort.InferenceSession, feeds: Arrays) -> Check:
    """Rows together against each alone; the rows are rolled copies of the feeds' first."""
    rows = {
        name: np.concatenate([np.roll(array[:1], row, -1) for row in range(ROWS)])
        for name, array in feeds.items()
    }
    name = "rows together against each alone"
    try:
        together = _run(session, rows)
        alone = [
            _run(session, {key: array[row : row + 1] for key, array in rows.items()}) for row in range(ROWS)
        ]
    except Exception:  # whatever a graph raises whose first axis is no batch
        return Check(name=name, max_error=np.inf, limit=LIMIT)
    if any(len(array) != ROWS for array in together.values()):
        return Check(name=name, max_error=np.inf, limit=LIMIT)
    expected = {key: np.concatenate([answer[key] for answer in alone]) for key in together}
    return _check(name, expected, together)


def _session(path: Path, level: ort.GraphOptimizationLevel) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 4
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def _tensor(value: Any) -> Tensor:
    return Tensor(name=value.name, type=value.type, shape=sizes_of(value))


def _run(session: ort.InferenceSession, feeds: Arrays) -> Arrays:
    names = [value.name for value in session.get_outputs()]
    return dict(zip(names, session.run(names, feeds), strict=True))


def _check(name: str, expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> Check:
    is_half = any(array.dtype == np.float16 for array in expected.values())
    return Check(name=name, max_error=_distance(expected, found), limit=HALF_LIMIT if is_half else LIMIT)


def _distance(expected: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]) -> float:
    return max(_one_distance(expected[name], found[name]) for name in expected)


def _one_distance(expected: NDArray[Any], found: NDArray[Any]) -> float:
    """The largest |Δ| as a share of the largest value, at least 1; infinite where it can't be told."""
    if expected.shape != found.shape:
        return float("inf")
    if expected.dtype.kind != "f":
        return 0.0 if np.array_equal(expected, found) else float("inf")
    is_same = (expected == found) | (np.isnan(expected) & np.isnan(found))
    if is_same.all():
        return 0.0
    scale = max(1.0, float(np.abs(expected[np.isfinite(expected)]).max(initial=0)))
    distance = float(np.abs(expected[~is_same] - found[~is_same]).max()) / scale
    return distance if np.isfinite(distance) else float("inf")


def main() -> None:
    """Print the proof for the graph that the arguments name; an error is one line and exit code 1."""
    path, size, example = Path(sys.argv[1]), int(sys.argv[2]), [Path(name) for name in sys.argv[3:]]
    limit_memory(resource.RLIMIT_AS, size)
    try:
        print(examine(path, example[0] if example else None).model_dump_json())
    except NoInputsError as error:
        sys.exit(str(error))
    except Exception as error:  # whatever ONNX Runtime makes of the graph
        sys.exit(" ".join(f"{type(error).__name__}: {error}".split()))


if __name__ == "__main__":
    main()

"""Answers several requests by as few runs as their shapes allow, each as if it were alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from backends.onnxruntime.errors import GraphError

Array = npt.NDArray[Any]


class Runs(Protocol):
    """What `Graph` does for this module."""

    def run(self, feeds: Mapping[str, Array], wanted: Sequence[str]) -> dict[str, Array]:
        """The `wanted` outputs of one run; raises GraphError."""
        ...


@dataclass(frozen=True)
class Call:
    """One request: its inputs, of which the first axis is the batch if the model has one, and its outputs."""

    feeds: Mapping[str, Array]
    wanted: tuple[str, ...]


Answer = dict[str, Array] | GraphError


def answer_all(graph: Runs, calls: Sequence[Call], *, batches: bool) -> list[Answer]:
    """One answer per call, in order. Calls whose shapes differ in the batch axis only run together.

    Where such a run fails each of its calls runs alone, so that only the guilty one fails.
    """
    answers: dict[int, Answer] = {}
    for group in _groups(calls, batches=batches):
        together = [calls[index] for index in group]
        answers.update(zip(group, _answer_group(graph, together), strict=True))
    return [answers[index] for index in range(len(calls))]


def _groups(calls: Sequence[Call], *, batches: bool) -> list[list[int]]:
    groups: dict[object, list[int]] = {}
    for index, call in enumerate(calls):
        shapes = tuple(sorted((name, array.shape[1:]) for name, array in call.feeds.items()))
        groups.setdefault(shapes if batches else index, []).append(index)
    return list(groups.values())


def _answer_group(graph: Runs, calls: Sequence[Call]) -> list[Answer]:
    try:
        return list(_run_together(graph, calls) if len(calls) > 1 else [_run(graph, calls[0])])
    except GraphError as error:
        return [error] if len(calls) == 1 else [_answer_group(graph, [call])[0] for call in calls]


def _run(graph: Runs, call: Call) -> dict[str, Array]:
    return graph.run(call.feeds, call.wanted)


def _run_together(graph: Runs, calls: Sequence[Call]) -> list[dict[str, Array]]:
    """The answers of one run over all rows."""
    counts = [len(next(iter(call.feeds.values()))) for call in calls]
    feeds = {name: np.concatenate([call.feeds[name] for call in calls]) for name in calls[0].feeds}
    wanted = tuple(dict.fromkeys(name for call in calls for name in call.wanted))
    outputs = graph.run(feeds, wanted)
    for name, array in outputs.items():
        if len(array) != sum(counts):
            raise GraphError(
                "internal",
                name,
                f"{len(array)} rows came for {sum(counts)}; this graph can't batch: set max_batch_size to 0",
            )
    ends = np.cumsum(counts)
    return [
        {name: outputs[name][end - count : end] for name in call.wanted}
        for call, count, end in zip(calls, counts, ends, strict=True)
    ]

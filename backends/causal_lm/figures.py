"""What a model tells of itself beside the logits: a graph's extra outputs on their way to a response."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

UNCERTAINTY = ("confidence", "epistemic", "aleatoric")
BUDGET = "thought_budget"
KNOWN = (*UNCERTAINTY, BUDGET)


@dataclass(frozen=True, slots=True)
class Uncertainty:
    """Figures by name: one per token of a response, and in the last response their mean over the answer.

    `mean` is None before the last response, and for an answer without tokens.
    """

    tokens: Mapping[str, tuple[float, ...]]
    mean: Mapping[str, float] | None


def tensors_for(names: Collection[str]) -> set[str]:
    """The tensors that carry the extra outputs `names`."""
    return {"cot_budget" if name == BUDGET else "uncertainty" for name in names}


class NonFiniteFigureError(Exception):
    """The graph returned NaN or infinity where a figure should be."""


class FigureLog:
    """One sequence's figures; `names` are the extra outputs of its model, in their order.

    A token's figures are those of the step that it was drawn from.
    """

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._columns = {name: names.index(name) for name in UNCERTAINTY if name in names}
        self._budget_column = names.index(BUDGET) if BUDGET in names else None
        self._first: NDArray[np.float32] | None = None
        self._tokens: list[NDArray[np.float32]] = []
        self._sum = np.zeros(len(names))
        self._count = 0

    @property
    def budget(self) -> int | None:
        """Tokens that the prompt was worth thinking; 0 before it was read, None if the model can't say."""
        if self._budget_column is None:
            return None
        return 0 if self._first is None else round(float(self._first[self._budget_column]))

    def add(self, figures: NDArray[np.float32], *, shown: bool) -> None:
        """Take the figures [k, F] of one step, of k rows their mean; `shown` tokens count for the answer.

        Raises NonFiniteFigureError.
        """
        if not self._names:
            return
        if not np.isfinite(figures).all():
            raise NonFiniteFigureError(f"the graph's {', '.join(self._names)} are {figures.tolist()}")
        mean = figures.mean(axis=0)
        if self._first is None:
            self._first = mean
        if shown and self._columns:
            self._tokens.append(mean)
            self._sum += mean
            self._count += 1

    def take(self, *, is_last: bool) -> Uncertainty | None:
        """The figures since the last call; None if the model has none."""
        if not self._columns:
            return None
        tokens, self._tokens = self._tokens, []
        mean = None
        if is_last and self._count:
            mean = {name: float(self._sum[column]) / self._count for name, column in self._columns.items()}
        return Uncertainty(
            {name: tuple(float(row[column]) for row in tokens) for name, column in self._columns.items()},
            mean,
        )

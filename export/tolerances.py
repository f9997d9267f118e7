"""How far an artifact may be from PyTorch in float32: one table for every engine and scenario."""

from dataclasses import dataclass
from typing import Literal

from export.manifest import Precision


@dataclass(frozen=True)
class Tolerance:
    """Limits of one precision.

    "max": |Δlogit| of every step is at most `limit`. "mean": its mean over all steps is at most that share of
    the standard deviation of the reference's logits. `perplexity_ratio` bounds graph / reference.
    `figure_share` bounds the same statistic of an extra output, as a share of the reference's largest value.
    """

    stat: Literal["max", "mean"]
    limit: float
    perplexity_ratio: float
    figure_share: float


TOLERANCES: dict[Precision, Tolerance] = {
    # The same numbers summed in another order.
    "fp32": Tolerance("max", 1e-4, 1.0001, 1e-4),
    # Ten bits of mantissa through every layer.
    "fp16": Tolerance("mean", 0.02, 1.005, 0.005),
    # A wrong cache, mask or position makes logits independent of the right ones, which differ by 1.13 spreads
    # in the mean: far beyond what rounding does, even where it sends a token to another expert and one step
    # is off by a quarter of the spread. What rounding costs in quality, the perplexity says.
    "int8": Tolerance("mean", 0.2, 1.005, 0.02),
    "int4": Tolerance("mean", 0.5, 1.03, 0.1),
}

"""Attention beside a Bayesian's memory: sufficient statistics of all that came before."""

from torch import Tensor

from training.blocks.attention import Attention
from training.blocks.forward_pass import ForwardPass
from training.blocks.positional_debiasing import PositionalDebiasing
from training.blocks.state import State, StateSpec
from training.blocks.sufficient_statistics import SufficientStatsEncoder
from training.config import ModelConfig


class BayesianAttention(Attention):
    """Attention plus sufficient statistics, both of the debiased stream.

    State: attention's two caches, then the statistics' sums (B, S) in float32. Source: arXiv 2507.11768.
    """

    extra_names = ("confidence", "epistemic", "aleatoric")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        self.debias = PositionalDebiasing(config.d_model)
        self.statistics = SufficientStatsEncoder(config.d_model, config.num_statistics)

    def state_specs(self, layer: int) -> tuple[StateSpec, ...]:
        """Attention's caches and the running sums."""
        sums = StateSpec(layer, "statistics", "recurrent", (self.config.num_statistics,))
        return *super().state_specs(layer), sums

    def forward(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        """y = concat(heads) Wo + statistics; see Mixer.forward. Leaves the belief in the pass's extras."""
        caches, sums = (None, None) if state is None else (state[:-1], state[-1])
        x = self.debias(x, step.positions)
        o, caches_after = self.attend_by_head(x, caches, step)
        told, belief, sums_after = self.statistics(x, sums, step)
        if step.extras is not None:
            step.extras["confidence"] = belief.mean
            step.extras["epistemic"] = belief.variance
            step.extras["aleatoric"] = belief.mean * (1 - belief.mean)
        y = self.out(o.flatten(2)) + told
        return y, () if state is None else (*caches_after, sums_after)

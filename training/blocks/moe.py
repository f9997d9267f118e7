"""Mixture of experts: a router sends each token to a few of many SwiGLU networks."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.blocks.feed_forward import SwiGLU
from training.blocks.forward_pass import ForwardPass
from training.blocks.precision import at_least_float32, without_autocast
from training.blocks.router import bias_step, choose_by_bias, choose_experts
from training.config import ModelConfig


class MoE(nn.Module):
    """(B, T, C) -> (B, T, C) by the chosen experts, plus the shared ones that see every token.

    `gate_up` (E, 2F, C) holds gate and up interleaved: row 2i is gate i, row 2i+1 is up i, the layout that
    ONNX Runtime's fused operator reads. `down` is (E, C, F). Experts have no biases. `selection_bias` (E,),
    with `bias` balancing only, belongs to the model but not to the optimizer: it follows the load.
    """

    selection_bias: Tensor | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        E, F_, C = config.num_experts, config.d_ff, config.d_model
        self.num_chosen = config.experts_per_token
        self.bias_rate = config.bias_rate
        self.router = nn.Linear(C, E, bias=False)
        self.gate_up = nn.Parameter(torch.empty(E, 2 * F_, C))
        self.down = nn.Parameter(torch.empty(E, C, F_))
        self.register_buffer("selection_bias", torch.zeros(E) if config.balancing == "bias" else None)
        shared = config.num_shared_experts
        self.shared = SwiGLU(config, num_parts=shared) if shared else None

    def forward(self, x: Tensor, step: ForwardPass) -> Tensor:
        """y = Σ_chosen w_e FFN_e(x) (+ shared); the router computes in float32 or better."""
        B, T, C = x.shape
        with without_autocast(x):
            logits = F.linear(at_least_float32(x), at_least_float32(self.router.weight))  # (B, T, E)
        if self.selection_bias is not None:
            logits = choose_by_bias(logits, self.selection_bias, self.num_chosen)
        if step.routing is not None:
            step.routing.append(logits)
        y = step.lowering.experts(
            x.reshape(B * T, C),
            logits.reshape(B * T, -1),
            gate_up=self.gate_up,
            down=self.down,
            num_chosen=self.num_chosen,
        ).view(B, T, C)
        return y if self.shared is None else y + self.shared(x, step)

    @torch.no_grad()
    def balance(self, load: Tensor) -> None:
        """After a training step with this load (E,): make what is overused less likely to be chosen."""
        if self.selection_bias is not None:
            self.selection_bias += bias_step(load, self.bias_rate)


def apply_experts(x: Tensor, logits: Tensor, *, gate_up: Tensor, down: Tensor, num_chosen: int) -> Tensor:
    """Each expert on the tokens that chose it, and on no others; none is dropped.

    x (N, C), logits (N, E), gate_up (E, 2F, C) interleaved, down (E, C, F) -> (N, C).
    """
    weights, experts = choose_experts(logits, num_chosen)
    y = torch.zeros_like(x)
    for e in range(gate_up.shape[0]):
        rows, choices = torch.where(experts == e)
        chosen = x[rows]
        hidden = F.silu(chosen @ gate_up[e, 0::2].T) * (chosen @ gate_up[e, 1::2].T)  # (n, F)
        weighted = (hidden @ down[e].T) * weights[rows, choices, None]
        y.index_add_(0, rows, weighted.type_as(y))
    return y

"""The blocks in standard ONNX operators, as TensorRT fuses them; ONNX Runtime runs them too, to compare."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.onnx.ops import rotary_embedding, symbolic

from training.blocks.attention import visible
from training.blocks.retention import parallel, state_after
from training.blocks.rotary import Rotary
from training.blocks.router import choose_experts
from training.blocks.state import State

OPSET = 24
HEAD_DIMS = (32, 64, 128, 256)


class TensorRT:
    """Takes ragged rows by `lengths`. No operator of a vendor's domain, no data-dependent shape."""

    def attention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        state: State | None,
        positions: Tensor,
        lengths: Tensor | None,
        rotary: Rotary | None,
        scale: float,
        window: int | None = None,
    ) -> tuple[Tensor, State]:
        """TensorScatter into the cache, Attention under a boolean mask. See Lowering.attention.

        Tokens past `lengths` are written after the valid ones, where later tokens overwrite them unseen.
        Raises ValueError for a head size that TensorRT has no kernel for.
        """
        assert state is not None
        if q.shape[-1] not in HEAD_DIMS:
            raise ValueError(f"head_dim is {q.shape[-1]}, but TensorRT's attention takes {HEAD_DIMS}")
        if rotary is not None:
            q = self.rotate(q, positions=positions, rotary=rotary)
            k = self.rotate(k, positions=positions, rotary=rotary)
        key, value = (
            _scatter(cache, new.transpose(1, 2), positions[:, 0])
            for cache, new in zip(state, (k, v), strict=True)
        )
        mask = visible(positions, key.shape[2], window).unsqueeze(1)  # (B, 1, T, S)
        query = q.transpose(1, 2)  # (B, H, T, D)
        # TensorRT's parser refuses is_causal beside a mask, and ignores nonpad_kv_seqlen in silence.
        o = symbolic(
            "Attention",
            (query, key, value, mask),
            {"scale": scale},
            dtype=q.dtype,
            shape=query.shape,
            version=OPSET,
        )
        return o.transpose(1, 2), (key, value)

    def retention(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        log_gamma: Tensor,
        state: State | None,
        lengths: Tensor | None,
    ) -> tuple[Tensor, State]:
        """One chunk in parallel form, the state by each row's own length. See Lowering.retention."""
        assert state is not None
        gamma = log_gamma.exp()
        o, _ = parallel(q, k, v, gamma, state[0])
        return o, (state_after(k, v, gamma, state[0], lengths),)

    def rotate(self, x: Tensor, *, positions: Tensor, rotary: Rotary) -> Tensor:
        """RotaryEmbedding. See Lowering.rotate."""
        cos, sin = rotary.cos.to(x.dtype), rotary.sin.to(x.dtype)
        return rotary_embedding(x.transpose(1, 2), cos, sin, positions).transpose(1, 2)

    def experts(self, x: Tensor, logits: Tensor, *, gate_up: Tensor, down: Tensor, num_chosen: int) -> Tensor:
        """Every expert on every token, weighed by its gate, zero where not chosen. See Lowering.experts."""
        E = gate_up.shape[0]
        weights, experts = choose_experts(logits, num_chosen)  # (N, k)
        is_chosen = experts.unsqueeze(-1) == torch.arange(E)  # (N, k, E)
        gates = (weights.unsqueeze(-1) * is_chosen).sum(dim=1)  # (N, E)
        hidden = _swiglu_interleaved(x @ gate_up.transpose(1, 2))  # (E, N, F)
        y = hidden @ down.transpose(1, 2)  # (E, N, C)
        return (y * gates.T.unsqueeze(-1)).sum(dim=0).type_as(x)


def _scatter(cache: Tensor, new: Tensor, start: Tensor) -> Tensor:
    """`cache` (B, H, S, D) with `new` (B, H, T, D) from each row's `start` (B,) on."""
    return symbolic(
        "TensorScatter",
        (cache, new.type_as(cache), start),
        {"axis": 2},
        dtype=cache.dtype,
        shape=cache.shape,
        version=OPSET,
    )


def _swiglu_interleaved(gate_up: Tensor) -> Tensor:
    """silu(gate) ⊙ up of (…, 2F) with gate at even and up at odd places -> (…, F)."""
    return F.silu(gate_up[..., 0::2]) * gate_up[..., 1::2]

"""The blocks as ONNX Runtime's own fused operators (domain com.microsoft), with kernels for CPU and CUDA."""

import torch
from torch import Tensor
from torch.onnx.ops import rotary_embedding, symbolic, symbolic_multi_out

from training.blocks.rotary import Rotary
from training.blocks.state import State


class OnnxRuntime:
    """One fused node per function. Any T for B = 1 and T = 1 for any B: GroupQueryAttention's limits."""

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
        """GroupQueryAttention, rotation inside; the cache may be updated in place. See Lowering.attention.

        Tokens past `lengths` are written after the valid ones, where later tokens overwrite them unseen.
        """
        assert state is not None
        B, T, H, D = q.shape
        last = (positions[:, 0] + (T - 1)).to(torch.int32)  # (B,) positions count back from it
        tables = (None, None) if rotary is None else (rotary.cos, rotary.sin)
        o, key, value = symbolic_multi_out(
            "com.microsoft::GroupQueryAttention",
            (q.flatten(2), k.flatten(2), v.flatten(2), *state, last, last.max() + 1, *tables),
            {
                "num_heads": H,
                "kv_num_heads": k.shape[2],
                "scale": scale,
                "do_rotary": int(rotary is not None),
                "local_window_size": -1 if window is None else window,
            },
            dtypes=(q.dtype, state[0].dtype, state[1].dtype),
            shapes=((B, T, H * D), state[0].shape, state[1].shape),
            version=1,
        )
        return o.view(B, T, H, D), (key, value)

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
        """LinearAttention with a decay per head; the state may be updated in place. See Lowering.retention.

        A padding token has key zero and decay one, so that it leaves the state as it was.
        """
        assert state is not None
        assert lengths is not None
        _, T, H, _ = q.shape
        valid = (torch.arange(T) < lengths[:, None]).unsqueeze(-1).to(q.dtype)  # (B, T, 1)
        o, after = symbolic_multi_out(
            "com.microsoft::LinearAttention",
            (q.flatten(2), k.flatten(2) * valid, v.flatten(2), state[0], valid * log_gamma),
            {"q_num_heads": H, "kv_num_heads": H, "update_rule": "gated", "scale": 1.0},
            dtypes=(v.dtype, state[0].dtype),
            shapes=(v.flatten(2).shape, state[0].shape),
            version=1,
        )
        return o.view(v.shape), (after,)

    def rotate(self, x: Tensor, *, positions: Tensor, rotary: Rotary) -> Tensor:
        """RotaryEmbedding. See Lowering.rotate."""
        B, T, H, D = x.shape
        return rotary_embedding(x.flatten(2), rotary.cos, rotary.sin, positions, num_heads=H).view(B, T, H, D)

    def experts(self, x: Tensor, logits: Tensor, *, gate_up: Tensor, down: Tensor, num_chosen: int) -> Tensor:
        """MoE, which computes the router's softmax and only the chosen experts. See Lowering.experts."""
        return symbolic(
            "com.microsoft::MoE",
            (x, logits, gate_up, None, down),
            {
                "k": num_chosen,
                "normalize_routing_weights": 1,
                "activation_type": "swiglu",
                "swiglu_fusion": 1,
                "activation_alpha": 1.0,
                "activation_beta": 0.0,
            },
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )

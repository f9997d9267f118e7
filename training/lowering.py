"""The one seam between the blocks and the machine they are computed on.

A block describes what it computes by calling one of four functions. Eager computes them with PyTorch, for
training and as the reference; an exporter puts its own in place with `use_lowering`; no block knows.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

import torch
from torch import Tensor

from training.blocks import rotary as rotary_block
from training.blocks.attention import attend, visible, write_cache
from training.blocks.moe import apply_experts
from training.blocks.retention import CHUNK, chunkwise, parallel, parallel_output, state_after
from training.blocks.rotary import Rotary
from training.blocks.state import State


class Lowering(Protocol):
    """The four functions. `state` None is a full sequence from its start, and the state after is empty."""

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
        """Causal attention, q (B, T, H, D), k and v (B, T, Hkv, D), all before rotation -> o (B, T, H, D).

        `state` is (key, value), each (B, Hkv, S, D), keys rotated. New keys and values go to `positions`
        (B, T); a query sees slots at or before its own position, with `window` only the last so many.
        A row's tokens past `lengths` (B,) are not written.
        """
        ...

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
        """Retention of rotated and scaled q, k (B, T, H, dk) and v (B, T, H, dv) -> o (B, T, H, dv).

        `log_gamma` (H,); `state` is (S,) with S (B, H, dk, dv) in float32, which a row's tokens past
        `lengths` (B,) do not touch.
        """
        ...

    def rotate(self, x: Tensor, *, positions: Tensor, rotary: Rotary) -> Tensor:
        """Rotary positions on x (B, T, H, D), channels paired half-split."""
        ...

    def experts(self, x: Tensor, logits: Tensor, *, gate_up: Tensor, down: Tensor, num_chosen: int) -> Tensor:
        """The `num_chosen` best SwiGLU experts per token, x (N, C), logits (N, E) -> (N, C).

        `gate_up` (E, 2F, C): row 2i is gate i, row 2i+1 is up i; `down` (E, C, F). Weights are the softmax
        over all experts, normalised over the chosen.
        """
        ...


class Eager:
    """Plain PyTorch, differentiable, in any precision; the reference for every other lowering."""

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
        """See Lowering.attention."""
        if rotary is not None:
            q = self.rotate(q, positions=positions, rotary=rotary)
            k = self.rotate(k, positions=positions, rotary=rotary)
        if state is None:
            mask = None if window is None else _causal_window(q, window)
            return attend(q, k.transpose(1, 2), v.transpose(1, 2), mask=mask, scale=scale), ()
        key = write_cache(state[0], k, positions=positions, lengths=lengths)
        value = write_cache(state[1], v, positions=positions, lengths=lengths)
        mask = visible(positions, key.shape[2], window)
        o = attend(q, key.to(q.dtype), value.to(q.dtype), mask=mask, scale=scale)
        return o, (key, value)

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
        """See Lowering.retention; parallel for a short sequence, chunkwise for a longer one."""
        gamma = log_gamma.exp()
        before = None if state is None else state[0]
        is_short = q.shape[1] <= 2 * CHUNK
        if state is None and is_short:
            return parallel_output(q, k, v, gamma, None), ()
        o, after = (parallel if is_short else chunkwise)(q, k, v, gamma, before)
        if state is None:
            return o, ()
        return o, (after if lengths is None else state_after(k, v, gamma, before, lengths),)

    def rotate(self, x: Tensor, *, positions: Tensor, rotary: Rotary) -> Tensor:
        """See Lowering.rotate."""
        return rotary_block.rotate(x, positions, rotary)

    def experts(self, x: Tensor, logits: Tensor, *, gate_up: Tensor, down: Tensor, num_chosen: int) -> Tensor:
        """See Lowering.experts."""
        return apply_experts(x, logits, gate_up=gate_up, down=down, num_chosen=num_chosen)


def _causal_window(q: Tensor, window: int) -> Tensor:
    """The mask (B, T, T) of full sequences, which start at 0, for q (B, T, H, D)."""
    B, T = q.shape[:2]
    return visible(torch.arange(T, device=q.device).expand(B, T), T, window)


_active: ContextVar[Lowering] = ContextVar("lowering", default=Eager())  # noqa: B039 (it has no state)


def active_lowering() -> Lowering:
    """The lowering that a forward pass uses now: Eager unless `use_lowering` says otherwise."""
    return _active.get()


@contextmanager
def use_lowering(lowering: Lowering) -> Iterator[None]:
    """Compute with `lowering` inside the `with` block, in this thread or task only."""
    token = _active.set(lowering)
    try:
        yield
    finally:
        _active.reset(token)

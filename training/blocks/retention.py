"""Retention: attention whose memory fades by a fixed factor per token, so that a matrix can hold it.

Three forms of one function, all `(q, k, v, gamma, state) -> (o, state)`: q, k (B, T, H, dk), v (B, T, H, dv),
gamma (H,), state S (B, H, dk, dv) or None for zeros; o (B, T, H, dv). The state and the sums are float32 or
better. Source: RetNet, arXiv 2307.08621, without the normalisation of scores that would tell the forms apart.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.blocks.forward_pass import ForwardPass
from training.blocks.mixer import Mixer
from training.blocks.precision import at_least_float32, precise
from training.blocks.state import State, StateSpec
from training.config import Decays, ModelConfig

CHUNK = 64


@precise
def recurrent(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """Token by token, the definition: S_n = γ S_{n-1} + k_nᵀ v_n, o_n = q_n S_n."""
    q, k, v, gamma = _precise(q, k, v, gamma)
    state = _state_before(k, v, state)
    outputs = []
    for n in range(q.shape[1]):
        state = gamma[:, None, None] * state + k[:, n, :, :, None] * v[:, n, :, None, :]  # (B, H, dk, dv)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, n], state))
    return torch.stack(outputs, dim=1), state


def parallel(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, state: Tensor | None) -> tuple[Tensor, Tensor]:
    """All tokens at once: O = (QKᵀ ⊙ D) V + (Q S) ⊙ ξ, D_nm = γ^(n-m) for n >= m, ξ_n = γ^(n+1)."""
    return parallel_output(q, k, v, gamma, state), state_after(k, v, gamma, state)


@precise
def parallel_output(q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, state: Tensor | None) -> Tensor:
    """What `parallel` puts out, for a sequence that nothing follows."""
    q, k, v, gamma = _precise(q, k, v, gamma)
    T = q.shape[1]
    steps = torch.arange(T, device=q.device)
    ages = steps[:, None] - steps  # (T, T)
    # Clamped before the power: γ^(negative) overflows, and infinity times the mask's zero is not a number.
    decay = (gamma[:, None, None] ** ages.clamp(min=0)).tril()  # (H, T, T)
    scores = torch.einsum("bnhk,bmhk->bhnm", q, k) * decay
    o = torch.einsum("bhnm,bmhv->bnhv", scores, v)
    if state is not None:
        fade = gamma ** (steps[:, None] + 1)  # (T, H)
        o = o + torch.einsum("bnhk,bhkv->bnhv", q, state.to(q.dtype)) * fade[:, :, None]
    return o


def chunkwise(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, state: Tensor | None, *, chunk: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """Parallel within chunks and recurrent from one to the next; the last chunk may be short."""
    state = _state_before(k, v, state)
    rest = q.shape[1] % chunk
    if rest == q.shape[1]:
        return parallel(q, k, v, gamma, state)
    sizes = [q.shape[1] - rest, rest]
    # Split, not sliced: each slice's gradient would be as long as the whole sequence.
    (q, last_q), (k, last_k), (v, last_v) = (torch.split(x, sizes, dim=1) for x in (q, k, v))
    o, state = _whole_chunks(q, k, v, gamma, state, chunk=chunk)
    if not rest:
        return o, state
    last, state = parallel(last_q, last_k, last_v, gamma, state)
    return torch.cat((o, last), dim=1), state


@precise
def _whole_chunks(
    q: Tensor, k: Tensor, v: Tensor, gamma: Tensor, state: Tensor, *, chunk: int
) -> tuple[Tensor, Tensor]:
    """`chunkwise` for T = N·chunk: N states follow one another, all else is done for all chunks at once."""
    B, T, H, _ = q.shape
    (gamma,) = _precise(gamma)
    q, k, v = (x.reshape(-1, chunk, *x.shape[2:]) for x in (q, k, v))  # (B·N, chunk, H, d)
    added = state_after(k, v, gamma, None)  # (B·N, H, dk, dv)
    fade = (gamma**chunk)[:, None, None]
    states = [state]
    for own in added.view(B, -1, *state.shape[1:]).unbind(dim=1):
        states.append(fade * states[-1] + own)
    o = parallel_output(q, k, v, gamma, torch.stack(states[:-1], dim=1).flatten(0, 1))
    return o.reshape(B, T, H, -1), states[-1]


@precise
def state_after(
    k: Tensor, v: Tensor, gamma: Tensor, state: Tensor | None, lengths: Tensor | None = None
) -> Tensor:
    """γ^L S + Σ_{m<L} γ^(L-1-m) k_mᵀ v_m, where L is T, or each row's own of `lengths` (B,)."""
    k, v, gamma = _precise(k, v, gamma)
    B, T, _, _ = k.shape
    L = torch.full((B,), T, device=k.device) if lengths is None else lengths
    ages = L[:, None] - 1 - torch.arange(T, device=k.device)  # (B, T); negative past the length
    fade = gamma ** ages.clamp(min=0)[:, :, None] * (ages >= 0)[:, :, None]  # (B, T, H)
    new = torch.einsum("bmhk,bmhv->bhkv", k, v * fade[..., None])
    if state is None:
        return new
    return new + (gamma ** L[:, None])[:, :, None, None] * state.to(new.dtype)


def _precise(*tensors: Tensor) -> tuple[Tensor, ...]:
    return tuple(map(at_least_float32, tensors))


def _state_before(k: Tensor, v: Tensor, state: Tensor | None) -> Tensor:
    B, _, H, dk = k.shape
    dtype = torch.promote_types(k.dtype, torch.float32)
    if state is None:
        return torch.zeros(B, H, dk, v.shape[-1], dtype=dtype, device=k.device)
    return state.to(dtype)


def decay_rates(num_heads: int, kind: Decays = "doubling") -> Tensor:
    """γ of each head in float64, (H,): 1 - 1 / M for a memory of M tokens.

    M is 32 · 2^h, or `spread` over 32 to 512 evenly in its logarithm.
    """
    if kind == "doubling":
        return 1 - 2.0 ** (-5 - torch.arange(num_heads, dtype=torch.float64, device="cpu"))
    return 1 - torch.logspace(-5, -9, num_heads, base=2, dtype=torch.float64, device="cpu")


def decay_scale(log_gamma: Tensor, positions: Tensor) -> Tensor:
    """(Σ_{i<=n} γ^i)^-½ of each head at positions n (B, T), (B, T, H): 2307.08621's second normalisation."""
    counts = (positions + 1).unsqueeze(-1)
    return (torch.expm1(counts * log_gamma) / torch.expm1(log_gamma)).rsqrt()


class Retention(Mixer):
    """RetNet's multi-scale retention with a swish gate; state: one matrix (B, H, dk, dv) in float32."""

    log_gamma: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        assert config.value_dim is not None
        self.config = config
        self.key_dim, self.value_dim = config.head_dim, config.value_dim
        key_width, value_width = config.num_heads * self.key_dim, config.num_heads * self.value_dim
        has_bias = config.biases == "all"
        self.query = nn.Linear(config.d_model, key_width, bias=config.biases != "none")
        self.key = nn.Linear(config.d_model, key_width, bias=config.biases != "none")
        self.value = nn.Linear(config.d_model, value_width, bias=config.biases != "none")
        self.gate = nn.Linear(config.d_model, value_width, bias=has_bias)
        self.out = nn.Linear(value_width, config.d_model, bias=has_bias)
        log_gamma = decay_rates(config.num_heads, config.decays).log().float()
        self.register_buffer("log_gamma", log_gamma, persistent=False)

    def state_specs(self, layer: int) -> tuple[StateSpec, ...]:
        """The sum of faded key-value products, of the same size at every position."""
        return (
            StateSpec(layer, "retention", "recurrent", (self.config.num_heads, self.key_dim, self.value_dim)),
        )

    def forward(self, x: Tensor, state: State | None, step: ForwardPass) -> tuple[Tensor, State]:
        """y = (swish(xWg) ⊙ RMSNorm_head(O)) Wo; see Mixer.forward."""
        assert step.rotary is not None
        B, T, _ = x.shape
        q = self.query(x).view(B, T, -1, self.key_dim)
        k = self.key(x).view(B, T, -1, self.key_dim)
        lowering, positions, rotary = step.lowering, step.positions, step.rotary
        o, state = lowering.retention(
            lowering.rotate(q, positions=positions, rotary=rotary),
            lowering.rotate(k, positions=positions, rotary=rotary) * self.key_dim**-0.5,
            self.value(x).view(B, T, -1, self.value_dim),
            log_gamma=self.log_gamma,
            state=state,
            lengths=step.lengths,
        )
        if self.config.retention_scaling:
            # All that the norm after it leaves of this is how much its eps counts.
            o = o * decay_scale(self.log_gamma, positions).unsqueeze(-1)
        o = F.rms_norm(o, (self.value_dim,), eps=self.config.norm_eps).type_as(x)
        return self.out(F.silu(self.gate(x)) * o.flatten(2)), state

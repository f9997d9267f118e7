"""What a model tells of itself, for people."""

from __future__ import annotations

from client.triton import AsyncTritonClient
from client.wire import EXTRA_OUTPUTS, GenerateResponse, WireError


async def require_told(client: AsyncTritonClient, model: str) -> None:
    """Return if the model tells its uncertainty; WireError that lists the served ones that do otherwise."""
    if await _tells(client, model):
        return
    telling = [name for name in await client.models() if await _tells(client, name)]
    served = ", ".join(telling) or "none; a model with bayesian_attention does"
    raise WireError("invalid", "model", f"{model!r} does not tell its uncertainty; served that do: {served}")


async def _tells(client: AsyncTritonClient, model: str) -> bool:
    return not EXTRA_OUTPUTS.keys().isdisjoint((await client.model_info(model)).outputs)


def described(last: GenerateResponse) -> str:
    """Return one line on an answer, made of its last response."""
    mean = (last.uncertainty or {}).get("mean") or {}
    parts = [f"{name} {value:.3g}" for name, value in mean.items()]
    if last.cot_budget is not None:
        parts.append(f"thought budget {last.cot_budget} tokens")
    return " · ".join(parts) or "no token, so no uncertainty"

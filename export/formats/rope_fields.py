"""Rotary positions as config.json describes them, in the older spelling and in that of transformers 5."""

from typing import Any

from export.errors import ExportError
from export.formats.fields import Fields

SCALINGS = ("default", "linear", "llama3")


def rope_settings(fields: Fields, theta: float) -> dict[str, Any]:
    """ModelConfig's `rope_theta` and `rope_scaling`; `theta` where the file gives none.

    ExportError for a scaling or a partial rotation that the decoder does not compute.
    """
    rope = fields.section("rope_parameters" if "rope_parameters" in fields else "rope_scaling")
    share = rope.number("partial_rotary_factor", fields.number("partial_rotary_factor", 1.0))
    if share != 1:
        raise ExportError(f"{fields.file}: {share:.0%} of each head is rotated; supported is all of it")
    theta = rope.number("rope_theta", fields.number("rope_theta", theta))
    return {"rope_theta": theta, "rope_scaling": _scaling(rope)}


def _scaling(rope: Fields) -> dict[str, Any] | None:
    kind = rope.text("rope_type", rope.text("type", "default"))
    if kind not in SCALINGS:
        raise ExportError(f"{rope.file}: the scaling is {kind!r}; supported are {', '.join(SCALINGS)}")
    if kind == "default":
        return None
    scaling: dict[str, Any] = {"kind": kind, "factor": rope.number("factor")}
    if kind == "linear":
        return scaling
    return scaling | {
        "original_length": rope.integer("original_max_position_embeddings"),
        "slow_turns": rope.number("low_freq_factor"),
        "fast_turns": rope.number("high_freq_factor"),
    }

"""The seam: blocks compute through the active lowering and nothing else."""

import torch
from torch import Tensor

from training.decoder import Decoder
from training.lowering import Eager, active_lowering, use_lowering
from training.presets import PRESETS


class Recording(Eager):
    """Eager that writes down which of its functions were called."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> object:
        if name in ("attention", "retention", "rotate", "experts"):
            self.calls.append(name)
        return super().__getattribute__(name)


def test_the_lowering_in_use_is_the_one_asked_for_and_only_inside() -> None:
    before, other = active_lowering(), Eager()
    with use_lowering(other):
        assert active_lowering() is other
    assert active_lowering() is before


def test_the_lowering_before_comes_back_after_an_error() -> None:
    before = active_lowering()
    try:
        with use_lowering(Eager()):
            raise OSError
    except OSError:
        assert active_lowering() is before


def test_every_block_computes_through_the_lowering() -> None:
    recording = Recording()
    with use_lowering(recording):
        Decoder(PRESETS["retnet-moe-tiny"])(torch.arange(4)[None])
        assert recording.calls == ["retention", "rotate", "rotate", "experts"] * 2
        recording.calls.clear()
        Decoder(PRESETS["gpt2-tiny"])(torch.arange(4)[None])
    assert recording.calls == ["attention"] * 2


def test_a_replaced_function_changes_the_model() -> None:
    class NoExperts(Eager):
        def experts(self, x: Tensor, logits: Tensor, **_: object) -> Tensor:
            return torch.zeros_like(x)

    decoder = Decoder(PRESETS["retnet-moe-tiny"])
    ids = torch.arange(4)[None]
    with use_lowering(NoExperts()):
        without, _ = decoder(ids)
    assert (without - decoder(ids)[0]).abs().max() > 1e-3

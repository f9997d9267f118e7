"""A decoder as an ONNX graph: one serving step, dynamic batch and length, states in and out."""

import gc
from pathlib import Path
from typing import Literal

import onnx_ir as ir
import torch
from torch import Tensor, nn

from export.exporter_log import quiet_exporter
from export.grouped_experts import group_experts
from export.lowerings.onnxruntime import OnnxRuntime
from export.lowerings.tensorrt import TensorRT
from export.onnx_files import save_graph
from export.tidy import tidy
from training.blocks.state import State
from training.decoder import Decoder
from training.lowering import Lowering, use_lowering

OPSET = 24
LOWERINGS: dict[str, Lowering] = {"onnxruntime": OnnxRuntime(), "standard": TensorRT()}
INPUTS = ("input_ids", "positions", "lengths", "logits_at")


class Step(nn.Module):
    """One serving step with tensors in and tensors out, as the graph's contract names them."""

    def __init__(self, decoder: Decoder, extra_outputs: tuple[str, ...]) -> None:
        super().__init__()
        self.decoder = decoder
        self.extra_outputs = extra_outputs

    def forward(
        self, input_ids: Tensor, positions: Tensor, lengths: Tensor, logits_at: Tensor, past: State
    ) -> tuple[Tensor, ...]:
        """Logits (B, K, V) in float32 at the tokens whose places in the row are `logits_at` (B, K), the
        states after the step, and the extra figures (B, K) in float32 at the same tokens.
        """
        extras: dict[str, Tensor] = {}
        logits, present = self.decoder(
            input_ids, positions=positions, lengths=lengths, at=logits_at, state=past, extras=extras
        )
        return logits.float(), *present, *(extras[name].float() for name in self.extra_outputs)


def graph_from_decoder(
    decoder: Decoder,
    path: Path,
    *,
    lowering: Literal["onnxruntime", "standard"],
    dtype: Literal["float32", "float16"] = "float32",
    extra_outputs: tuple[str, ...] = (),
    experts: Literal["fused", "grouped"] = "fused",
) -> Path:
    """Write the decoder's serving step to `path`, big weights to `path` + `.data`; returns `path`.

    `dtype` is that of weights, activations and `kv` states; logits and `recurrent` states stay float32.
    `extra_outputs` are figures of `decoder.extra_names()`, float32 (B, K) each, behind the states.
    `experts` for ONNX Runtime are one MoE, which quantize_graph takes, or what is faster in float32.
    Raises ValueError for an unknown lowering or figure, and for float16 where no kernel computes in it.
    """
    if lowering not in LOWERINGS:
        raise ValueError(f"lowering {lowering!r} was given; known: {', '.join(LOWERINGS)}")
    if unknown := set(extra_outputs) - set(decoder.extra_names()):
        known = ", ".join(decoder.extra_names()) or "none"
        raise ValueError(f"extra outputs {sorted(unknown)} were given; this model has: {known}")
    if dtype == "float16":
        if lowering == "onnxruntime":
            raise ValueError(
                "ONNX Runtime's CPU operators compute in float32: choose int8 or int4 for a smaller model"
            )
        decoder = _in_half(decoder)
    # With parameters of its own over the same memory, to be emptied when the graph is written.
    decoder = Decoder.from_tensors(decoder.config, decoder.state_dict())
    model = tidy(_trace(decoder, LOWERINGS[lowering], extra_outputs), decoder.state_dict())
    if experts == "grouped":
        group_experts(model)
    save_graph(model, path)
    _let_go_of_weights(model, decoder)
    return path


def _in_half(decoder: Decoder) -> Decoder:
    """A float16 copy, whose blocks keep norms, routers and recurrent states in float32 by themselves."""
    weights = {name: weight.half() for name, weight in decoder.state_dict().items()}
    return Decoder.from_tensors(decoder.config, weights)


def _example_state(decoder: Decoder) -> State:
    """Two rows, never read nor written: tracing wants shapes, and long caches would take real memory."""
    dtype = decoder.embedding.weight.dtype
    return tuple(
        torch.empty(2, *spec.shape, dtype=dtype if spec.kind == "kv" else getattr(torch, spec.dtype))
        for spec in decoder.state_specs()
    )


def _trace(decoder: Decoder, lowering: Lowering, extra_outputs: tuple[str, ...]) -> ir.Model:
    specs = decoder.state_specs()
    B, K = torch.export.Dim("B"), torch.export.Dim("K")
    T = torch.export.Dim("T", max=decoder.config.max_length)
    past = _example_state(decoder)
    lengths, logits_at = torch.tensor([3, 3]), torch.tensor([[1, 2], [1, 2]])
    example = (torch.zeros(2, 3, dtype=torch.long), torch.arange(3).repeat(2, 1), lengths, logits_at, past)
    with use_lowering(lowering), torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            Step(decoder, extra_outputs).eval(),
            example,
            input_names=(*INPUTS, *(spec.past for spec in specs)),
            output_names=("logits", *(spec.present for spec in specs), *extra_outputs),
            opset_version=OPSET,
            dynamic_shapes=({0: B, 1: T}, {0: B, 1: T}, {0: B}, {0: B, 1: K}, tuple({0: B} for _ in past)),
            verbose=False,
        )
    assert program is not None
    return program.model


def _let_go_of_weights(model: ir.Model, decoder: Decoder) -> None:
    """The exporter's rewrite rules remember the last graph, with each weight before and after folding."""
    for value in model.graph.initializers.values():
        value.const_value = None
    for parameter in decoder.parameters():
        parameter.data = torch.empty(0)
    gc.collect()  # an exported program refers to itself

"""Models that make one vector of a text, as stateless ONNX graphs."""

from pathlib import Path
from typing import Literal

import onnx_ir as ir
import torch
import torch.nn.functional as F
from onnx_ir.passes.common import ClearMetadataAndDocStringPass
from torch import Tensor, nn

from export.exporter_log import quiet_exporter
from export.lowerings.onnxruntime import OnnxRuntime
from export.onnx_files import save_graph
from export.stamps import OPSET
from training.blocks.attention import visible
from training.blocks.rotary import Rotary
from training.blocks.state import State
from training.decoder import Decoder
from training.lowering import use_lowering

Pooling = Literal["mean", "last", "cls"]
INPUTS, OUTPUT = ("input_ids", "attention_mask"), "embedding"


class Embedder(nn.Module):
    """Hidden states of an encoder or decoder, pooled and of length 1."""

    def __init__(self, body: nn.Module, pooling: Pooling) -> None:
        super().__init__()
        self.body = body
        self.pooling = pooling

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings (B, C) in float32 of `input_ids` (B, T).

        `attention_mask` (B, T) is 1 for a row's own tokens, which come first, and 0 for padding.
        """
        hidden = self.body(input_ids, attention_mask)  # (B, T, C)
        return F.normalize(pool(hidden.float(), attention_mask, self.pooling), dim=-1)


def pool(hidden: Tensor, attention_mask: Tensor, pooling: Pooling) -> Tensor:
    """One vector (B, C) of `hidden` (B, T, C): the valid tokens' mean, the last of them, or the first."""
    if pooling == "cls":
        return hidden[:, 0]
    if pooling == "mean":
        valid = attention_mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * valid).sum(1) / valid.sum(1).clamp(min=1)
    last = (attention_mask.sum(1) - 1).clamp(min=0)
    return hidden.gather(1, last[:, None, None].expand(-1, 1, hidden.shape[-1])).squeeze(1)


class DecoderBody(nn.Module):
    """A decoder up to its last norm. Causal, so that what pads a row behind its tokens is not seen."""

    def __init__(self, decoder: Decoder) -> None:
        super().__init__()
        self.decoder = Decoder.from_tensors(decoder.config, dict(decoder.state_dict()))
        self.decoder.head = nn.Identity()  # type: ignore[assignment]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, T, C)."""
        hidden: Tensor = self.decoder(input_ids)[0]
        return hidden


class FullSequence(OnnxRuntime):
    """ONNX Runtime's operators for whole texts: no cache comes in, none goes out."""

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
        """PyTorch's own, which becomes the standard operator Attention. See Lowering.attention."""
        if rotary is not None:
            q, k = (self.rotate(x, positions=positions, rotary=rotary) for x in (q, k))
        mask = None if window is None else visible(positions, k.shape[1], window).unsqueeze(1)
        o = F.scaled_dot_product_attention(
            q.transpose(1, 2),
            k.transpose(1, 2),
            v.transpose(1, 2),
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
            enable_gqa=k.shape[2] < q.shape[2],  # the exporter refuses it where it changes nothing
        )
        return o.transpose(1, 2), ()

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
        """LinearAttention from an empty state over all tokens. See Lowering.retention."""
        B, T, H, key_dim = q.shape
        empty = torch.zeros(B, H, key_dim, v.shape[-1])
        every = torch.full((B,), T)
        o, _ = super().retention(q, k, v, log_gamma=log_gamma, state=(empty,), lengths=every)
        return o, ()


def graph_from_embedder(embedder: Embedder, path: Path, *, max_length: int) -> Path:
    """Write `embedder` for up to `max_length` tokens to `path`, big weights beside; returns `path`."""
    B, T = torch.export.Dim("B"), torch.export.Dim("T", max=max_length)
    example = (torch.ones(2, 3, dtype=torch.long), torch.ones(2, 3, dtype=torch.long))
    with use_lowering(FullSequence()), torch.no_grad(), quiet_exporter():
        program = torch.onnx.export(
            embedder.eval(),
            example,
            input_names=INPUTS,
            output_names=(OUTPUT,),
            opset_version=OPSET,
            dynamic_shapes=({0: B, 1: T}, {0: B, 1: T}),
            verbose=False,
        )
    assert program is not None
    model: ir.Model = program.model
    _keep_for_output(model.graph, OUTPUT)
    ClearMetadataAndDocStringPass()(model)
    return save_graph(model, path)


def _keep_for_output(graph: ir.Graph, name: str) -> None:
    """Rename inner values that the exporter called as the output, after the module that made them."""
    inner = [value for node in graph.all_nodes() for value in node.outputs if not value.is_graph_output()]
    for index, value in enumerate(inner):
        if value.name == name:
            value.name = f"{name}.{index}"

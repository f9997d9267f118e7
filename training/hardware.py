"""Devices, precision and ranks: what Accelerate, DDP and FSDP do for a training run."""

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from training.objective import Objective
from training.recipes import Precision


class HardwareError(ValueError):
    """What this machine or this number of ranks cannot do; the message says what to change."""


def build_accelerator(precision: Precision) -> Accelerator:
    """Of this process: one rank of many under `torchrun` or `accelerate launch`, else alone.

    Raises HardwareError for fp16 without a GPU, which would silently train in float32.
    """
    has_gpu = torch.cuda.is_available()
    if precision == "fp16" and not has_gpu:
        raise HardwareError("mixed_precision is fp16, but there is no GPU: choose bf16 or no")
    return Accelerator(
        mixed_precision=precision,
        cpu=not has_gpu,
        # The trainer weighs its parts itself, whatever number the environment names.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False)],
    )


def spread(objective: Objective, accelerator: Accelerator, *, is_sharded: bool) -> nn.Module:
    """`objective` as the ranks run it: on their devices, under autocast, with gradients averaged over them.

    Each rank has a whole copy (DDP), or if `is_sharded` a part of every weight (FSDP), gathered by layer.
    """
    if not is_sharded or accelerator.num_processes == 1:
        prepared: nn.Module = accelerator.prepare_model(objective)
        return prepared
    # Accelerate shards on GPUs only, so PyTorch is asked directly: one way for gloo and NCCL.
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in objective.decoder.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(objective, mesh=mesh)
    sharded: nn.Module = accelerator.prepare_model(objective, evaluation_mode=True)  # autocast alone
    return sharded


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, in memory of the CPU; any other as it is. Every rank must ask."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, pattern: Tensor) -> Tensor:
    """A copy of `value` where `pattern` lies, cut into the same shards. Every rank must ask."""
    value = value.to(pattern.device)
    if isinstance(pattern, DTensor) and value.shape == pattern.shape:
        return distribute_tensor(value, pattern.device_mesh, pattern.placements)
    return value.clone()

"""Devices, precision and ranks: what Accelerate, DDP and FSDP do for a training run."""

from datetime import timedelta

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from training.objective import Objective
from training.recipes import Precision

PATIENCE = timedelta(hours=1)  # of ranks that wait while one reads the data and trains the tokenizer
KNOWN = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


class HardwareError(ValueError):
    """What this machine or this number of ranks cannot do; the message says what to change."""


def build_accelerator(precision: Precision) -> Accelerator:
    """Of this process: one rank of many under `torchrun` or `accelerate launch`, else alone.

    Raises HardwareError for fp16 without a GPU, which would silently train in float32, and for a launcher's
    own sharding.
    """
    has_gpu = torch.cuda.is_available()
    if precision == "fp16" and not has_gpu:
        raise HardwareError("mixed_precision is fp16, but there is no GPU: choose bf16 or no")
    accelerator = Accelerator(
        mixed_precision=precision,
        cpu=not has_gpu,
        # The trainer weighs its parts itself, whatever number the environment names.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
    )
    if accelerator.distributed_type not in KNOWN:
        raise HardwareError(
            f"the launcher asks for {accelerator.distributed_type.value}: launch without it, and give "
            "--sharded to spread the weights over the ranks"
        )
    return accelerator


def spread(objective: Objective, accelerator: Accelerator, *, is_sharded: bool) -> nn.Module:
    """`objective` as the ranks run it: on their devices, under autocast, with gradients averaged over them.

    Each rank has a whole copy (DDP), or if `is_sharded` a part of every weight (FSDP), gathered by layer.
    """
    placed: nn.Module = accelerator.prepare_model(objective, evaluation_mode=True)  # device and autocast
    if accelerator.num_processes == 1:
        return placed
    if not is_sharded:
        devices = None if accelerator.device.type == "cpu" else [accelerator.device]
        return DistributedDataParallel(placed, device_ids=devices, forward_sync_buffers=False)
    # Accelerate shards on GPUs only; PyTorch does it over gloo and NCCL alike.
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for block in objective.decoder.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(placed, mesh=mesh)
    return placed


def whole(tensor: Tensor) -> Tensor:
    """All of a sharded tensor, in memory of the CPU; any other as it is. Every rank must ask."""
    return tensor.full_tensor().cpu() if isinstance(tensor, DTensor) else tensor


def placed_like(value: Tensor, pattern: Tensor) -> Tensor:
    """A copy of `value` where `pattern` lies, cut into the same shards. Every rank must ask."""
    value = value.to(pattern.device)
    if isinstance(pattern, DTensor) and value.shape == pattern.shape:
        return distribute_tensor(value, pattern.device_mesh, pattern.placements)
    return value.clone()

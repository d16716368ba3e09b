"""Several processes, one for each GPU, that share every batch; torchrun starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import Tensor, nn

BUCKET_BYTES = 64 * 2**20  # of gradients that travel together
PATIENCE_H = 6.0  # that processes wait for one another, while one validates or trains alone


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Attributes:
        world: How many there are.
        rank: Which this is; 0 writes the files.
        local_rank: Which it is on its machine, so the number of its GPU.
    """

    world: int = 1
    rank: int = 0
    local_rank: int = 0

    @property
    def first(self) -> bool:
        """Whether this is the one that writes files and talks."""
        return self.rank == 0

    def wait(self) -> None:
        """Go on when all have come here."""
        self.any(False)

    def any(self, here: bool) -> bool:
        """Whether it is so in any of them; all must ask."""
        if self.world == 1:
            return here
        on_gpu = torch.distributed.get_backend() == "nccl"
        flag = torch.tensor(int(here), device=f"cuda:{self.local_rank}" if on_gpu else "cpu")
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def mean(self, value: Tensor) -> Tensor:
        """The mean of a tensor over all processes; all must ask."""
        if self.world == 1:
            return value
        value = value.detach().clone()
        torch.distributed.all_reduce(value)
        return value / self.world


@contextmanager
def joined_processes(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """The group that torchrun started this process in, or itself alone, and its device.

    Args:
        device: `cpu`, or `cuda` without a number: each process takes the GPU of its own.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(), device
        return
    here = Processes(world, int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"]))
    if device.type == "cuda":
        if here.local_rank >= torch.cuda.device_count():
            raise ValueError(
                f"process {here.local_rank} of this machine has no GPU, there are "
                f"{torch.cuda.device_count()}; start as many with torchrun --nproc-per-node"
            )
        device = torch.device("cuda", here.local_rank)
        torch.cuda.set_device(device)
    torch.distributed.init_process_group(
        "nccl" if device.type == "cuda" else "gloo", timeout=timedelta(hours=PATIENCE_H)
    )
    try:
        yield here, device
    finally:
        torch.distributed.destroy_process_group()


def average_gradients(parameters: Sequence[nn.Parameter], world: int) -> None:
    """Replace every gradient by its mean over the processes."""
    bucket: list[Tensor] = []
    size = 0
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        bucket.append(parameter.grad)
        size += parameter.grad.numel() * parameter.grad.element_size()
        if size >= BUCKET_BYTES:
            _average(bucket, world)
            bucket, size = [], 0
    if bucket:
        _average(bucket, world)


def _average(bucket: list[Tensor], world: int) -> None:
    flat = torch.cat([gradient.flatten() for gradient in bucket])
    torch.distributed.all_reduce(flat)  # gloo has no mean
    flat /= world
    for gradient, part in zip(bucket, flat.split([g.numel() for g in bucket]), strict=True):
        gradient.copy_(part.view_as(gradient))

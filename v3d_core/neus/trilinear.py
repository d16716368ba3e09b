"""Values between the samples of a volume."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

CPU_PARTS = 8  # sets of points that cores share; by trial


def trilinear(
    volume: Tensor,  # [C, R, R, R]
    unit: Tensor,  # [..., 3]
) -> Tensor:  # [C, ...]
    """Values at points in [-1, 1], from samples at cell centres, clamped at the cube's faces.

    On a CPU torch gives each volume of a batch to one core, however many points are read in it. So
    the points are cut into equal sets that read the same volume; the values are the same bits.

    Args:
        volume: Samples, axes x, y, z.
        unit: Places, in the same order of axes.
    """
    count = unit[..., 0].numel()
    parts = math.gcd(count, CPU_PARTS) if volume.device.type == "cpu" else 1
    values = F.grid_sample(
        volume[None].expand(parts, -1, -1, -1, -1),
        unit.flip(-1).reshape(parts, 1, 1, count // parts, 3),
        align_corners=False,
        padding_mode="border",
    )
    return values[:, :, 0, 0].transpose(0, 1).reshape(len(volume), *unit.shape[:-1])


def interleaved(volume: Tensor) -> Tensor:  # [C, R, R, R]
    """The same volume with its channels side by side in memory, which `trilinear` reads faster."""
    return volume.permute(1, 2, 3, 0).contiguous().permute(3, 0, 1, 2)

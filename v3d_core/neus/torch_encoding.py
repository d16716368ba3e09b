"""The hash grid in plain torch: the definition that all other engines are checked against."""

from __future__ import annotations

import torch
from torch import Tensor

from .grid import HASH_PRIMES, Encoded, HashGrid, no_pull_back


def encode_torch(
    points: Tensor,  # [N, 3]
    table: Tensor,  # [entries, 2]
    grid: HashGrid,
    jacobian: bool = True,
) -> Encoded:
    """Trilinear interpolation in every level, on any device and in any precision.

    Args:
        points: In the unit cube; what is outside is clamped. No gradient. [N, 3]
        table: Entries of all levels. [entries, 2]
        grid: Their layout.
        jacobian: Whether `pull_back` will be called.
    """
    points = points.detach().to(table.dtype)
    inside = ((points >= 0) & (points <= 1)).to(table.dtype)
    points = points.clamp(0, 1)
    numbers = torch.arange(8, device=points.device)
    corners = torch.stack([numbers & 1, (numbers >> 1) & 1, numbers >> 2], dim=-1)  # [8, 3]
    features, slopes = [], []
    for level in range(grid.levels):
        place = points * grid.scales[level] + 0.5
        cell = place.floor()
        share = torch.where(corners.bool(), (place - cell)[:, None], 1 - (place - cell)[:, None])
        rows = _rows(cell.long()[:, None] + corners, grid, level)
        # the gradient of index_select is a plain sum, that of table[rows] sorts the rows first
        entries = table.index_select(0, rows.flatten()).view(len(points), 8, 2)
        features.append((share.prod(-1)[..., None] * entries).sum(1))
        if jacobian:
            sign = (2 * corners - 1).to(table.dtype)
            x, y, z = share.unbind(-1)
            slope = sign * torch.stack([y * z, x * z, x * y], dim=-1)  # [N, 8, 3]
            slope = slope * (inside * grid.scales[level])[:, None]
            slopes.append((entries[..., None] * slope[..., None, :]).sum(1))  # [N, 2, 3]
    if not jacobian:
        return Encoded(torch.cat(features, dim=-1), no_pull_back)
    by_points = torch.cat(slopes, dim=1)  # [N, width, 3]

    def pull_back(gradient: Tensor) -> Tensor:
        return (gradient[..., None] * by_points).sum(1)

    return Encoded(torch.cat(features, dim=-1), pull_back)


def _rows(vertices: Tensor, grid: HashGrid, level: int) -> Tensor:
    """Table rows of integer vertices [..., 3] of a level."""
    x, y, z = vertices.unbind(-1)
    if grid.dense[level]:
        side = grid.resolutions[level]
        index = x + side * (y + side * z)
    else:
        # products stay below 2^63, and the mask keeps only bits that 32-bit products have too
        hashed = (x * HASH_PRIMES[0]) ^ (y * HASH_PRIMES[1]) ^ (z * HASH_PRIMES[2])
        index = hashed & (2**grid.log2_entries - 1)
    return index + grid.offsets[level]

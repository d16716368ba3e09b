"""What meshes split at texture seams need in files: rows told equal, shared normals, closedness."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

SMALLEST_NORMAL = 1e-30  # an area vector below it, in squared world units, has no direction


def merged_rows(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tell equal rows by one number; exact, since seams repeat the very same values.

    Args:
        rows: Any numbers without NaN. [N, C]

    Returns:
        Where each different row stands first, in order of appearance [U]; and for every row its
        place among those [N].
    """
    order = np.lexsort(rows.T)  # stable: the first of equal rows stays the first
    ordered = rows[order]
    starts = np.ones(len(rows), bool)
    starts[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
    first = order[starts]
    by_appearance = np.argsort(first)
    rank = np.empty_like(first)
    rank[by_appearance] = np.arange(len(first))
    places = np.empty(len(rows), np.int64)
    places[order] = rank[np.cumsum(starts) - 1]
    return first[by_appearance], places


def shared_normals(vertices: Tensor, faces: Tensor) -> Tensor:  # [N, 3], [M, 3] -> [N, 3]
    """Area-weighted unit normals, float32, the same for all vertices at one position.

    So a surface stays smooth across a texture seam. +Y where no face gives a direction.
    """
    first, places = merged_rows(vertices.detach().cpu().numpy())
    places = torch.from_numpy(places).to(vertices.device)
    corners = vertices.double()[faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros(len(first), 3, dtype=torch.float64, device=vertices.device)
    for corner in range(3):
        total.index_add_(0, places[faces[:, corner]], area)
    return unit_normals(total)[places]


def unit_normals(directions: Tensor) -> Tensor:  # [N, 3] -> [N, 3] float32
    """Directions of length 1; +Y for one without length."""
    length = directions.double().norm(dim=-1, keepdim=True)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=directions.device)
    unit = directions / length.clamp_min(SMALLEST_NORMAL)
    return torch.where(length > SMALLEST_NORMAL, unit, up).float()


def is_closed_solid(vertices: Tensor, faces: Tensor) -> bool:  # [N, 3], [M, 3]
    """Whether nobody can see a face from behind: every edge, seams joined, has one face on either
    side, all turned alike and outward. Faces that are a line do not count.
    """
    _, places = merged_rows(vertices.numpy())
    corners = places[faces.numpy()]
    a, b, c = corners.T
    corners = corners[(a != b) & (b != c) & (c != a)]
    if not len(corners):
        return False
    here, there = corners.reshape(-1), np.roll(corners, -1, axis=1).reshape(-1)
    codes = np.sort(here * len(places) + there)
    if (codes[1:] == codes[:-1]).any() or (codes != np.sort(there * len(places) + here)).any():
        return False
    p, q, r = vertices.double()[faces].unbind(1)
    return float((p * torch.linalg.cross(q, r)).sum()) > 0

"""Which piece of the surface each texel of an atlas shows, and what bilinear sampling reads there.

Texel (x, y) has its centre at uv ((x + 0.5) / W, (y + 0.5) / H); (0, 0) is the upper left corner.
Texels are numbered row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from ..structures import Mesh

UV_TOLERANCE = 1e-4  # of uvs beyond 0..1 that rounding in files explains; they are clamped
REACH = math.sqrt(2)  # texels; bilinear sampling in a face reads texels this near to it
CANDIDATES_PER_BATCH = 4_000_000  # pairs of texel and face that are looked at together
CENTRE_INSIDE = 1e-6  # texels; a centre this near to a face counts as inside


@dataclass(frozen=True)
class Texels:
    """The texels that sampling the atlas can read, each with the nearest place of the surface.

    Attributes:
        index: Numbers of the texels, ascending. [T] int64
        face: The face that is nearest in the atlas. [T] int64
        barycentric: The nearest point of that face. [T, 3]
        inside: Whether the texel's centre lies in a face; the rest is the rim around the charts.
            [T] bool
        overlap: Share of the inside texels that lie in more than one face.
        height: Of the atlas, texels.
        width: Of the atlas, texels.
    """

    index: Tensor
    face: Tensor
    barycentric: Tensor
    inside: Tensor
    overlap: float
    height: int
    width: int

    def __len__(self) -> int:
        return len(self.index)

    def on_surface(self, mesh: Mesh, values: Tensor) -> Tensor:  # [N, C] -> [T, C]
        """Values of vertices at the texels."""
        return (self.barycentric[..., None] * values[mesh.faces[self.face]]).sum(dim=1)


def require_atlas(mesh: Mesh) -> Tensor:  # [N, 2]
    """The mesh's uvs, clamped to 0..1.

    Raises:
        ValueError: There are none, or they leave 0..1 (a tiled texture cannot hold a picture of its
            own for every place).
    """
    if mesh.uvs is None:
        raise ValueError("the mesh has no uvs; unwrap it first")
    used = mesh.uvs[mesh.faces.reshape(-1)]
    low, high = float(used.min()), float(used.max())
    if low < -UV_TOLERANCE or high > 1 + UV_TOLERANCE:
        raise ValueError(
            f"the mesh's uvs go from {low:.3g} to {high:.3g}, but a texture of its own needs them "
            "in 0 to 1; unwrap the mesh again"
        )
    return mesh.uvs.clamp(0, 1)


def find_texels(
    mesh: Mesh, height: int, width: int, tick: Callable[[], None] = lambda: None
) -> Texels:
    """All texels within `REACH` of a face of the atlas.

    Args:
        mesh: With uvs in 0..1.
        height: Of the atlas, texels.
        width: Of the atlas, texels.
        tick: Called several times a second.

    Raises:
        ValueError: The uvs are missing or out of range.
    """
    size = np.array([width, height])
    corners = require_atlas(mesh).detach().cpu().double().numpy()[mesh.faces.cpu().numpy()]
    corners = corners * size - 0.5  # [M, 3, 2], in texels, centres at whole numbers
    low = np.clip(np.ceil(corners.min(axis=1) - REACH), 0, size - 1).astype(np.int64)
    high = np.clip(np.floor(corners.max(axis=1) + REACH), 0, size - 1).astype(np.int64)
    counts = (high - low + 1).prod(axis=1)
    best = np.full(height * width, np.inf, np.float32)
    owner = np.full(height * width, -1, np.int32)
    weights = np.zeros((height * width, 3), np.float32)
    cover = np.zeros(height * width, np.int32)  # faces that the centre lies in
    for faces in _batches(counts):
        tick()
        face, texel, nearest, away = _nearest_in_faces(corners, low, high, counts, faces, width)
        np.add.at(cover, texel[away <= CENTRE_INSIDE], 1)
        # the last of equal texels is written, so that the nearest face has to come last; faces
        # ascend, and most texels lie in one, so that few are to be sorted
        beside = np.flatnonzero(away > 0)
        beside = beside[np.lexsort((-face[beside], -away[beside]))]
        order = np.concatenate([beside, np.flatnonzero(away == 0)[::-1]])
        order = order[away[order] < best[texel[order]]]
        best[texel[order]], owner[texel[order]] = away[order], face[order]
        weights[texel[order]] = nearest[order]
    index = np.flatnonzero(owner >= 0)
    inside = best[index] <= CENTRE_INSIDE
    shared = float((cover > 1).sum() / max(1, int(inside.sum())))
    device = mesh.device
    return Texels(
        index=torch.from_numpy(index).to(device),
        face=torch.from_numpy(owner[index].astype(np.int64)).to(device),
        barycentric=torch.from_numpy(weights[index]).to(device),
        inside=torch.from_numpy(inside).to(device),
        overlap=shared,
        height=height,
        width=width,
    )


def _batches(counts: np.ndarray) -> list[np.ndarray]:
    """Face numbers in groups of about `CANDIDATES_PER_BATCH` texels."""
    group = (np.cumsum(counts) - counts) // CANDIDATES_PER_BATCH
    return np.split(np.arange(len(counts)), np.flatnonzero(np.diff(group)) + 1)


def _nearest_in_faces(
    corners: np.ndarray,  # [M, 3, 2]
    low: np.ndarray,  # [M, 2]
    high: np.ndarray,  # [M, 2]
    counts: np.ndarray,  # [M]
    faces: np.ndarray,  # [B]
    width: int,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Texels within `REACH` of faces: face, texel, nearest point (weights), distance in texels."""
    face = np.repeat(faces, counts[faces])
    ends = np.cumsum(counts[faces])
    number = np.arange(len(face)) - np.repeat(ends - counts[faces], counts[faces])
    columns = (high[face, 0] - low[face, 0]) + 1
    rows = number // columns
    x, y = low[face, 0] + number - rows * columns, low[face, 1] + rows
    points = np.stack([x, y], axis=-1).astype(np.float64)
    near, weights, away = _nearest_weights(points, corners, face)
    texel = y[near] * width + x[near]
    return face[near], texel, weights.astype(np.float32), away.astype(np.float32)


def _nearest_weights(
    points: np.ndarray,  # [P, 2]
    corners: np.ndarray,  # [M, 3, 2]
    face: np.ndarray,  # [P]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points within `REACH` of their triangles in the plane.

    Returns:
        Which they are [N], the nearest points as weights of the corners [N, 3], distances [N].
    """
    a, b, c = corners.swapaxes(0, 1)
    area = _cross(b - a, c - a)
    safe = np.where(area == 0, 1.0, area)
    offset = points - a[face]
    beta = _cross(offset, (c - a)[face]) / safe[face]
    gamma = _cross((b - a)[face], offset) / safe[face]
    weights = np.stack([1 - beta - gamma, beta, gamma], axis=-1)
    away = np.where((weights.min(axis=-1) >= 0) & (area != 0)[face], 0.0, np.inf)
    # a point is no nearer to a triangle than to the line of a side that it lies beyond
    beside = np.flatnonzero(away > 0)
    sides = np.stack([c - b, a - c, b - a], axis=1)
    heights = np.abs(area)[:, None] / np.linalg.norm(sides, axis=-1).clip(1e-300)
    beyond = (weights[beside] * heights[face[beside]]).min(axis=-1)
    beside = beside[beyond >= -REACH - CENTRE_INSIDE]
    weights[beside], away[beside] = _nearest_on_sides(points[beside], corners[face[beside]])
    near = np.flatnonzero(away.astype(np.float32) <= REACH)
    return near, weights[near], away[near]


def _nearest_on_sides(
    points: np.ndarray,  # [P, 2]
    corners: np.ndarray,  # [P, 3, 2]
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest points of triangles' sides, as weights of the corners, and their distances."""
    weights = np.zeros((len(points), 3))
    away = np.full(len(points), np.inf)
    for i, j in ((0, 1), (1, 2), (2, 0)):
        side = corners[:, j] - corners[:, i]
        length = np.maximum((side**2).sum(-1), 1e-30)
        along = np.clip(((points - corners[:, i]) * side).sum(-1) / length, 0, 1)
        distance = np.hypot(*(corners[:, i] + along[:, None] * side - points).T)
        nearer = distance < away
        away = np.where(nearer, distance, away)
        weights[nearer] = 0
        weights[nearer, i], weights[nearer, j] = 1 - along[nearer], along[nearer]
    return weights, away


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]


def bilinear_taps(
    uvs: Tensor,  # [P, 2]
    height: int,
    width: int,
) -> tuple[Tensor, Tensor]:
    """What bilinear sampling reads: four texels and their weights; beyond the border its texels.

    Returns:
        Texel numbers [P, 4] int64 and weights that sum to 1 [P, 4].
    """
    x, y = (uvs[:, 0] * width - 0.5), (uvs[:, 1] * height - 0.5)
    left, top = x.floor(), y.floor()
    right_share, lower_share = x - left, y - top
    columns = torch.stack([left, left + 1, left, left + 1], dim=-1).long().clamp(0, width - 1)
    rows = torch.stack([top, top, top + 1, top + 1], dim=-1).long().clamp(0, height - 1)
    across = torch.stack([1 - right_share, right_share] * 2, dim=-1)
    down = torch.stack([1 - lower_share, 1 - lower_share, lower_share, lower_share], dim=-1)
    return rows * width + columns, across * down


def fill_gutter(texture: Tensor, texels: Texels) -> Tensor:
    """Every texel that nothing reads takes the nearest one's value, so mip levels see no background.

    Args:
        texture: [H, W, C]
        texels: Those that have values.
    """
    free = np.ones(texels.height * texels.width, bool)
    free[texels.index.cpu().numpy()] = False
    free = free.reshape(texels.height, texels.width)
    if not free.any() or free.all():
        return texture
    nearest = np.asarray(distance_transform_edt(free, return_distances=False, return_indices=True))
    rows, columns = (torch.from_numpy(i.astype(np.int64)).to(texture.device) for i in nearest)
    return texture[rows, columns]


def charts_of_faces(mesh: Mesh) -> Tensor:  # [M] int64
    """Number of the chart each face belongs to: faces that share vertices, with their uvs."""
    faces = mesh.faces.cpu().numpy()
    first = np.concatenate([faces[:, 0], faces[:, 1]])
    second = np.concatenate([faces[:, 1], faces[:, 2]])
    links = coo_matrix((np.ones(len(first), np.int8), (first, second)), [len(mesh.vertices)] * 2)
    _, labels = connected_components(links, directed=False)
    return torch.from_numpy(labels[faces[:, 0]].astype(np.int64)).to(mesh.device)

"""What no view shows: taking it off the visual hull, and colouring what is left.

Cameras at one height leave cones over and under an object, and slabs between its rungs, that no
silhouette can carve: every view only grazes their surface. Nothing speaks for them, so the surface
there is taken to be a membrane: it hangs on what is seen and is no longer than it has to be.
"""

from __future__ import annotations

import dataclasses
import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .cameras import project_points
from .structures import Views
from .visual_hull import VisualHull, sample_pictures

SHADOW_SLACK = 3.0  # voxels behind the front-most one that still count as seen
SEEN_FACING = 0.2  # cosine between normal and view above which a surface counts as seen: 78 degrees
MEMBRANE_LEVEL = 0.4  # of the harmonic field at which the membrane hangs
MEMBRANE_RESOLUTION = 64  # voxels a side for the field; it is smooth
MEMBRANE_STEPS = 200  # Jacobi steps: more changed nothing in trials with 300 and 1000
FULL_EVIDENCE = 0.3  # sum over views of facing^2 at which a voxel's own colour counts alone


@torch.no_grad()
def see_surface(
    points: Tensor,  # [N, 3]
    normals: Tensor,  # [N, 3]
    hull: VisualHull,
    views: Views,
) -> Tensor:  # [V, N]
    """Cosine between a surface point's normal and the direction to a view, 0 where it is hidden."""
    to_camera = F.normalize(views.cameras.centres[:, None] - points, dim=-1)
    facing = (to_camera * normals).sum(-1).clamp(min=0)
    return facing * _visible_past_hull(points, hull, views)


@torch.no_grad()
def trim_unseen(hull: VisualHull, views: Views, level: float = MEMBRANE_LEVEL) -> VisualHull:
    """The hull without the parts that no view supports.

    Surface voxels that some view sees at more than a grazing angle hold a field at 1, empty space
    beside unseen ones holds it at 0, and Laplace's equation fills the inside. What lies below
    `level` goes; seen surface always stays.

    Args:
        hull: Visual hull of `views`.
        views: Posed masks.
        level: Of the field, from 0 (nothing goes) to 1 (all that is not seen).
    """
    surface = hull.surface_voxels()
    points, normals = hull.voxel_centres(surface), hull.outward_normals(surface)
    seen = see_surface(points, normals, hull, views).amax(0) > SEEN_FACING
    fixed = torch.zeros_like(hull.occupied)
    fixed[tuple(surface[seen].T)] = True

    shrink = max(1, math.ceil(len(fixed) / MEMBRANE_RESOLUTION))
    coarse = [
        F.max_pool3d(x[None, None].float(), shrink, ceil_mode=True)[0, 0] > 0
        for x in (hull.occupied, fixed)
    ]
    field = _harmonic(*coarse)
    size = len(field) * shrink
    field = F.interpolate(field[None, None], size=(size,) * 3, mode="trilinear")[0, 0]
    n = len(fixed)
    inside = field[:n, :n, :n] > level
    return dataclasses.replace(hull, occupied=hull.occupied & (inside | fixed))


def _harmonic(occupied: Tensor, fixed: Tensor) -> Tensor:  # [R, R, R] bool, twice -> [R, R, R]
    """A field that is 0 outside, 1 on fixed voxels, and relaxes to its neighbours' mean inside."""
    occupied, fixed = F.pad(occupied, (1,) * 6), F.pad(fixed, (1,) * 6)
    _, rows, columns = occupied.shape
    free = torch.nonzero((occupied & ~fixed).flatten())[:, 0]
    offsets = free.new_tensor([1, -1, columns, -columns, rows * columns, -rows * columns])
    neighbours = free[:, None] + offsets
    field = occupied.float().flatten()
    for _ in range(MEMBRANE_STEPS):
        field[free] = field[neighbours].mean(-1)
    return field.reshape(occupied.shape)[1:-1, 1:-1, 1:-1]


@torch.no_grad()
def colour_surface(
    points: Tensor,  # [N, 3]
    normals: Tensor,  # [N, 3]
    voxels: Tensor,  # [N, 3] int64
    hull: VisualHull,
    views: Views,
) -> Tensor:  # [N, 3]
    """Colours of surface points, sRGB in [0, 1].

    A point takes the mean of the views that see it past the hull, weighted by cos^2 of the viewing
    angle; the less it is seen, the more it takes the colour of the seen surface around its voxel
    (pull-push over a pyramid of voxels, Gortler et al. 1996).
    """
    weights = see_surface(points, normals, hull, views).square()[..., None]
    pixels, _ = project_points(points, views.cameras)
    masks = views.masks[..., None]
    sampled = sample_pictures(torch.cat([views.images * masks, masks], dim=-1), pixels)
    total = (weights * sampled).sum(0)  # colours times evidence, and evidence
    own = total[:, :3] / total[:, 3:].clamp(min=1e-6)
    side = len(hull.occupied)
    index = (voxels[:, 0] * side + voxels[:, 1]) * side + voxels[:, 2]
    volume = torch.zeros(side**3, 4, device=points.device).index_add_(0, index, total)
    around = _pull_push(volume.reshape(side, side, side, 4)).reshape(-1, 3)[index]
    share = (total[:, 3:] / FULL_EVIDENCE).clamp(max=1)
    return (share * own + (1 - share) * around).clamp(0, 1)


def _pull_push(volume: Tensor) -> Tensor:  # [R, R, R, 4] -> [R, R, R, 3]
    """Colours everywhere from colours times evidence and evidence: coarse where there is little."""
    levels = [volume.permute(3, 0, 1, 2)[None]]
    while levels[-1].shape[-1] > 1:
        levels.append(F.avg_pool3d(levels[-1], 2, ceil_mode=True) * 8)
    colours = levels[-1][:, :3] / levels[-1][:, 3:].clamp(min=1e-6)
    for level in reversed(levels[:-1]):
        coarse = F.interpolate(colours, size=level.shape[-3:], mode="trilinear")
        share = (level[:, 3:] / FULL_EVIDENCE).clamp(max=1)
        colours = share * level[:, :3] / level[:, 3:].clamp(min=1e-6) + (1 - share) * coarse
    return colours[0].permute(1, 2, 3, 0)


def _visible_past_hull(points: Tensor, hull: VisualHull, views: Views) -> Tensor:  # [V, N] bool
    """Whether no hull voxel stands in front of a point, by a depth buffer of voxel footprints."""
    cameras = views.cameras
    blockers = hull.voxel_centres(hull.surface_voxels())
    pixels, depths = project_points(blockers, cameras)
    # cells as large as a voxel's picture leave no gaps between neighbouring voxels
    cell = (
        1.5 * float(cameras.K[:, 0, 0].max()) * hull.voxel / float(depths.clamp(min=1e-6).median())
    )
    columns = math.ceil(cameras.width / cell) + 1
    rows = math.ceil(cameras.height / cell) + 1

    def cells(uv: Tensor) -> Tensor:
        index = (uv / cell).long()
        return index[..., 1].clamp(0, rows - 1) * columns + index[..., 0].clamp(0, columns - 1)

    front = torch.full((len(views), rows * columns), math.inf, device=points.device)
    front.scatter_reduce_(1, cells(pixels), depths, "amin")
    own_pixels, own_depths = project_points(points, cameras)
    nearest = front.gather(1, cells(own_pixels))
    return own_depths <= nearest + SHADOW_SLACK * hull.voxel

"""Where a fit starts: flat Gaussians on the visual hull, coloured by the views that see them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import project_points
from ..sh import dc_from_colours
from ..structures import GaussianSplats, Views
from ..visual_hull import VisualHull, sample_pictures

INITIAL_OPACITY = 0.5  # V3D recon train_from_vid.py starts at 0.5 (stock 3DGS: 0.1)
SCALE_OF_SPACING = 0.6  # of the mean distance between neighbours; the reference prototypes' value
FLATNESS = 0.3  # thickness of the start discs against their width
SHADOW_SLACK = 3.0  # voxels behind the front-most one that still count as seen


def splats_from_hull(
    hull: VisualHull,
    views: Views,
    count: int,
    sh_degree: int,
    generator: torch.Generator,
) -> GaussianSplats:
    """Spread `count` flat Gaussians evenly over the hull's surface.

    Their colour is the mean of the views that see the point, weighted by cos^2 of the viewing
    angle; points that no view sees take the mean colour of the object.
    """
    surface = hull.surface_voxels()
    # even spread: every voxel gets the same share, the remainder is drawn at random
    copies = count // len(surface)
    rest = torch.randperm(len(surface), generator=generator)[: count - copies * len(surface)]
    chosen = torch.cat([torch.arange(len(surface)).repeat(copies), rest]).to(surface.device)
    voxels = surface[chosen]
    jitter = torch.rand(len(voxels), 3, generator=generator).to(hull.centre) - 0.5
    means = hull.voxel_centres(voxels) + jitter * hull.voxel
    normals = hull.outward_normals(voxels)
    colours = fuse_view_colours(means, normals, hull, views)
    spacing = hull.voxel * math.sqrt(len(surface) / count)
    width = SCALE_OF_SPACING * spacing
    scales = means.new_tensor([width, width, FLATNESS * width]).expand_as(means)
    sh = means.new_zeros(len(means), (sh_degree + 1) ** 2, 3)
    sh[:, 0] = dc_from_colours(colours)
    opacities = means.new_full((len(means),), INITIAL_OPACITY)
    return GaussianSplats(means, scales.contiguous(), quats_from_normals(normals), opacities, sh)


def quats_from_normals(normals: Tensor) -> Tensor:  # [N, 3] -> [N, 4]
    """Shortest rotations that turn +Z to the normals, wxyz."""
    x, y, z = normals.unbind(-1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(x)], dim=-1)
    upside_down = normals.new_tensor([0.0, 1.0, 0.0, 0.0])
    quats = torch.where((z < -1 + 1e-6)[:, None], upside_down, quats)
    return F.normalize(quats, dim=-1)


def fuse_view_colours(
    points: Tensor,  # [N, 3]
    normals: Tensor,  # [N, 3]
    hull: VisualHull,
    views: Views,
) -> Tensor:  # [N, 3]
    """Colours of surface points from the views that see them past the hull, sRGB in [0, 1]."""
    visible = _visible_past_hull(points, hull, views)  # [V, N]
    to_camera = F.normalize(views.cameras.centres[:, None] - points, dim=-1)
    facing = (to_camera * normals).sum(-1).clamp(min=0)
    pixels, _ = project_points(points, views.cameras)
    masks = views.masks[..., None]
    sampled = sample_pictures(torch.cat([views.images * masks, masks], dim=-1), pixels)
    weights = (facing.square() * visible)[..., None]
    total = (weights * sampled).sum(0)  # premultiplied colours and their coverage
    masked = views.images * masks
    mean_colour = masked.sum((0, 1, 2)) / views.masks.sum()
    seen = total[:, 3:] > 1e-3
    return torch.where(seen, total[:, :3] / total[:, 3:].clamp(min=1e-3), mean_colour).clamp(0, 1)


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

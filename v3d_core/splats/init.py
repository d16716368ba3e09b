"""Where a fit starts: flat Gaussians on the visual hull, coloured by the views that see them."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..sh import dc_from_colours
from ..structures import GaussianSplats, Views
from ..unseen import colour_surface
from ..visual_hull import VisualHull

INITIAL_OPACITY = 0.5  # V3D recon train_from_vid.py starts at 0.5 (stock 3DGS: 0.1)
SCALE_OF_SPACING = 0.6  # of the mean distance between neighbours; the reference prototypes' value
FLATNESS = 0.3  # thickness of the start discs against their width


def splats_from_hull(
    hull: VisualHull,
    views: Views,
    count: int,
    sh_degree: int,
    generator: torch.Generator,
) -> tuple[GaussianSplats, float]:
    """Spread `count` flat Gaussians evenly over the hull's surface.

    Their colour is that of the views that see them, or of the surface around them.

    Returns:
        The Gaussians, and the mean distance between neighbours in world units.
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
    colours = colour_surface(means, normals, voxels, hull, views)
    spacing = hull.voxel * math.sqrt(len(surface) / count)
    width = SCALE_OF_SPACING * spacing
    scales = means.new_tensor([width, width, FLATNESS * width]).expand_as(means)
    sh = means.new_zeros(len(means), (sh_degree + 1) ** 2, 3)
    sh[:, 0] = dc_from_colours(colours)
    opacities = means.new_full((len(means),), INITIAL_OPACITY)
    quats = quats_from_normals(normals)
    return GaussianSplats(means, scales.contiguous(), quats, opacities, sh), spacing


def quats_from_normals(normals: Tensor) -> Tensor:  # [N, 3] -> [N, 4]
    """Shortest rotations that turn +Z to the normals, wxyz."""
    x, y, z = normals.unbind(-1)
    quats = torch.stack([1 + z, -y, x, torch.zeros_like(x)], dim=-1)
    upside_down = normals.new_tensor([0.0, 1.0, 0.0, 0.0])
    quats = torch.where((z < -1 + 1e-6)[:, None], upside_down, quats)
    return F.normalize(quats, dim=-1)

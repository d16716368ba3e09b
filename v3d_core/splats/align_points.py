"""Surface points read in every frame that sees them: where frames contradict each other.

A picture of a splat that was fitted to disagreeing frames has already given way to them: two
thirds of a frame's own warp were found in it (measured). Readings of the frames themselves have
not. The colours of the points are free (every row is taken against the mean over the views), and
each point may move along its normal, because the surface is only roughly known; both are
eliminated from the equations point by point.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import project_points
from ..structures import Cameras, Views
from ..unseen import see_surface
from ..view_warps import picture_gradients, read_at, spline_basis
from ..visual_hull import VisualHull

LEAST_FACING = 0.2  # cosine to the view; at more grazing angles a reading says little
EDGE_SLACK = 8.0  # voxels; a surface that much nearer, a cell away, may cover the point
NO_COVERAGE = 1e-3  # below it a blurred picture has no colour to speak of
CELL_VOXELS = 1.5  # voxels to a cell, if the hull's cube filled the picture
MEAN_ROUNDS = 3  # of reweighting towards the readings most views share


@dataclass
class SurfacePoints:
    """Points spread over a coarse surface.

    Attributes:
        positions: World units. [P, 3]
        normals: Unit vectors. [P, 3]
        facing: Cosine to each view, 0 where the point is hidden, near an edge that hides it, or
            seen at too grazing an angle. [V, P]
        area: Of the surface that one point stands for, square world units.
    """

    positions: Tensor
    normals: Tensor
    facing: Tensor
    area: float

    @classmethod
    def of(
        cls, hull: VisualHull, views: Views, count: int, generator: torch.Generator
    ) -> SurfacePoints:
        """At most `count` surface voxels of a hull, drawn at random."""
        surface = hull.surface_voxels()
        drawn = torch.randperm(len(surface), generator=generator)[:count].to(surface.device)
        points, normals = hull.voxel_centres(surface[drawn]), hull.outward_normals(surface[drawn])
        facing = see_surface(points, normals, hull, views)
        facing = facing * (facing > LEAST_FACING) * _clear_of_edges(points, hull, views.cameras)
        area = hull.voxel**2 * len(surface) / len(drawn)
        return cls(points, normals, facing, area)


@dataclass
class PointRows:
    """Quadratic form of the squared residuals in the motions of the points' readings.

    With the motions x = (dx, dy) of all views in fractions of the longer side, the sum over the
    points of x^T matrix x + 2 x^T pull, colours and offsets along the normals eliminated.

    Attributes:
        matrix: [P, 2 V, 2 V]
        pull: [P, 2 V]
        splines: Weights of the warps' coefficients at the points. [V, P, n * n]
        jacobian: d(positions in the pictures) / d(point). [P, 2 V, 3]
    """

    matrix: Tensor
    pull: Tensor
    splines: Tensor
    jacobian: Tensor


def point_rows(
    points: SurfacePoints,
    frames: Tensor,  # [V, 4, h, w]
    coverage: Tensor,  # [V, h, w]
    cameras: Cameras,
    warps: Tensor,  # [V, 2, n, n]
    gains: Tensor,  # [V, 3]
    *,
    pixels: float,
    residual_std: float,
    outlier: float,
    offset_std: float,
) -> PointRows:
    """Read the points in all frames and linearise.

    Args:
        points: On the surface as it is now.
        frames: Premultiplied colours and coverage, blurred.
        coverage: Not blurred; readings next to the background are left out.
        cameras: Of the frames.
        warps: Present B-spline coefficients.
        gains: Present factors of the colours.
        pixels: Along the longer side, by which squared residuals are counted.
        residual_std: Of one such pixel.
        outlier: Residual of all channels at which a reading counts half.
        offset_std: Of the surface along its normals, world units.
    """
    views, count = points.facing.shape
    position, scale, jacobian = _pictures_of(points.positions, cameras)
    nodes = warps.shape[-1]
    splines = torch.einsum(
        "vpm,vpn->vpmn",
        spline_basis(nodes, position[..., 1].flatten()).view(views, count, nodes),
        spline_basis(nodes, position[..., 0].flatten()).view(views, count, nodes),
    ).flatten(2)
    at = position + torch.einsum("vpn,vcn->vpc", splines, warps.flatten(2))

    # straight colours: blurred premultiplied ones would darken towards the outline
    colours = frames[:, :3] / frames[:, 3:].clamp(min=NO_COVERAGE) * gains[..., None, None]
    slopes = picture_gradients(colours).permute(0, 1, 4, 2, 3).flatten(1, 2)
    inside = -F.max_pool2d(-F.pad(coverage[:, None], (1, 1, 1, 1), mode="replicate"), 3, 1)
    read = read_at(torch.cat([colours, slopes, inside], dim=1), at)  # [V, 10, P]
    value, slope = read[:, :3], read[:, 3:9].unflatten(1, (3, 2))
    solid = read[:, 9].clamp(0, 1).square()
    weight = points.facing * solid * (scale * pixels).square() * points.area  # pixels^2
    robust, total = weight, weight.sum(0).clamp(min=1e-6)
    residual = value - (weight[:, None] * value).sum(0) / total
    for _ in range(MEAN_ROUNDS):
        robust = weight / (1 + residual.square().sum(1) / outlier**2)
        total = robust.sum(0).clamp(min=1e-6)
        residual = value - (robust[:, None] * value).sum(0) / total

    # rows sqrt(w) (slope x + residual), projected onto what the mean colour cannot take up
    root = robust.sqrt() / residual_std
    share = (robust / total).sqrt()  # [V, P], a unit vector over the views
    slope, residual = slope * root[:, None, None], residual * root[:, None]
    common = (slope * share[:, None, None]).permute(3, 1, 0, 2).flatten(2)  # [P, 3, 2 V]
    own = torch.einsum("vcip,vcjp->pvij", slope, slope)
    matrix = -(common.mT @ common).view(count, views, 2, views, 2)
    matrix.diagonal(dim1=1, dim2=3).add_(own.permute(0, 2, 3, 1))
    matrix = matrix.reshape(count, 2 * views, 2 * views)
    pull = torch.einsum("vcip,vcp->pvi", slope, residual).flatten(1)
    pull = pull - torch.einsum("pcx,cp->px", common, (residual * share[:, None]).sum(0))

    jacobian = jacobian.permute(1, 0, 2, 3).flatten(1, 2)  # [P, 2 V, 3]
    normal = (jacobian * points.normals[:, None]).sum(-1)  # [P, 2 V]
    bent = (matrix @ normal[..., None])[..., 0]
    stiffness = (normal * bent).sum(-1) + 1 / offset_std**2
    bent_more = bent / stiffness[:, None]
    matrix = matrix - bent[:, :, None] * bent_more[:, None]
    pull = pull - bent_more * (normal * pull).sum(-1, keepdim=True)
    return PointRows(matrix, pull, splines, jacobian)


def _pictures_of(points: Tensor, cameras: Cameras) -> tuple[Tensor, Tensor, Tensor]:
    """Positions of points in all pictures, and how they move.

    Returns:
        Fractions of the longer side from the picture's middle [V, P, 2], that fraction per world
        unit [V, P], and the positions' derivatives [V, P, 2, 3].
    """
    pixels, depths = project_points(points, cameras)
    longer = max(cameras.width, cameras.height)
    middle = points.new_tensor([cameras.width / 2, cameras.height / 2])
    focal = cameras.K[:, None, [0, 1], [0, 1]]  # [V, 1, 2]
    slope = (pixels - cameras.K[:, None, :2, 2]) / focal
    depths = depths.clamp(min=1e-6)[..., None]
    axes = torch.eye(2, 3, device=points.device, dtype=points.dtype)
    backwards = torch.zeros_like(axes)
    backwards[:, 2] = 1
    jacobian = (focal / longer / depths)[..., None] * (axes - slope[..., None] * backwards)
    rotation = cameras.camera_to_world[:, None, :3, :3]
    scale = (focal / longer / depths)[..., 0]
    return (pixels - middle) / longer, scale, jacobian @ rotation.mT


def _clear_of_edges(points: Tensor, hull: VisualHull, cameras: Cameras) -> Tensor:  # [V, P] bool
    """Whether nothing much nearer to a camera lies beside a point in its picture.

    A depth buffer of the hull's voxels, taken at its nearest over 3 x 3 cells.
    """
    blockers = hull.voxel_centres(hull.surface_voxels())
    pixels, depths = project_points(blockers, cameras)
    # cells a bit larger than a voxel's picture leave no gaps; found without waiting for a GPU
    longer = max(cameras.width, cameras.height)
    cells = max(1, math.floor(len(hull.occupied) / CELL_VOXELS))

    def cell_of(uv: Tensor) -> Tensor:
        index = (uv / longer * cells).long().clamp(0, cells - 1)
        return index[..., 1] * cells + index[..., 0]

    front = torch.full((len(cameras), cells**2), math.inf, device=points.device)
    front.scatter_reduce_(1, cell_of(pixels), depths, "amin")
    near = -F.max_pool2d(-front.view(-1, 1, cells, cells), 3, stride=1, padding=1).flatten(1)
    pixels, depths = project_points(points, cameras)
    return depths <= near.gather(1, cell_of(pixels)) + EDGE_SLACK * hull.voxel

"""Normal equations of all warps and of the object's deformation, and their joint solution.

Unknowns are the B-spline coefficients of the warps of all views, and the displacements of the
nodes of a grid in which the object lies. Warps of neighbouring views may resemble each other, so
that nothing is eliminated view by view.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import project_points
from ..structures import Cameras
from ..view_warps import pixel_positions
from .align_points import PointRows


class JointEquations:
    """matrix x + right = 0 in float64; only the lower triangle of the matrix is kept.

    The unknowns x are ordered (view, component, spline), then (field node, axis).
    """

    def __init__(self, views: int, splines: int, field: int, like: Tensor) -> None:
        """All zero.

        Args:
            views: Number of warps.
            splines: Coefficients of one component of a warp.
            field: Nodes of the field.
            like: On the device to work on.
        """
        self.views, self.splines, self.field = views, splines, field
        self.warp_unknowns = views * 2 * splines
        count = self.warp_unknowns + 3 * field
        self.matrix = torch.zeros(count, count, dtype=torch.float64, device=like.device)
        self.right = torch.zeros(count, dtype=torch.float64, device=like.device)

    def add_rows(
        self,
        of_warps: Tensor,  # [V, R, 2 * splines]
        of_field: Tensor,  # [V, R, 3 * field]
        right: Tensor,  # [V, R]
    ) -> None:
        """Rows of which each concerns one view and the field."""
        n = self.warp_unknowns
        blocks = self.matrix[:n, :n].view(self.views, 2 * self.splines, self.views, -1)
        own = (of_warps.mT @ of_warps).double()
        blocks.diagonal(dim1=0, dim2=2).add_(own.permute(1, 2, 0))
        self.matrix[n:, :n] += (of_field.mT @ of_warps).permute(1, 0, 2).flatten(1).double()
        flat = of_field.flatten(0, 1)
        self.matrix[n:, n:] += (flat.mT @ flat).double()
        self.right[:n] += (of_warps.mT @ right[..., None]).flatten().double()
        self.right[n:] += (flat.mT @ right.flatten()).double()

    def add_points(
        self,
        rows: PointRows,
        basis: Tensor,  # [P, field]
    ) -> None:
        """The quadratic form of points that are read in several views at once."""
        n, views, splines = self.warp_unknowns, self.views, rows.splines
        count = len(basis)
        matrix = rows.matrix.view(count, views, 2, views, 2)
        by_point = splines.permute(1, 0, 2)[:, None, :, None]  # [P, 1, V, 1, splines]
        blocks = self.matrix[:n, :n].view(views, 2, self.splines, -1)
        for view in range(views):  # the lower triangle
            many = matrix[:, view, :, : view + 1, :, None] * by_point[:, :, : view + 1]
            block = splines[view].mT @ many.reshape(count, -1)
            width = (view + 1) * 2 * self.splines
            blocks[view, :, :, :width] += block.view(self.splines, 2, -1).permute(1, 0, 2).double()
        moved = rows.matrix @ rows.jacobian  # [P, 2 V, 3]
        by_axis = moved.view(count, views, 2, 1, 3) * splines.permute(1, 0, 2)[:, :, None, :, None]
        crossed = basis.mT @ by_axis.reshape(count, -1)  # [field, V * 2 * splines * 3]
        crossed = crossed.view(self.field, -1, 3).permute(0, 2, 1).reshape(3 * self.field, -1)
        self.matrix[n:, :n] += crossed.double()
        both = rows.jacobian.mT @ moved  # [P, 3, 3]
        within = basis.mT @ (basis[:, :, None, None] * both[:, None]).reshape(count, -1)
        within = within.view(self.field, self.field, 3, 3).permute(0, 2, 1, 3)
        self.matrix[n:, n:] += within.reshape(3 * self.field, -1).double()
        pull = rows.pull.view(count, views, 2)
        self.right[:n] += torch.einsum("vpn,pvc->vcn", splines, pull).flatten().double()
        drawn = (rows.jacobian * rows.pull[..., None]).sum(1)  # [P, 3]
        self.right[n:] += (basis.mT @ drawn).flatten().double()

    def add_prior(
        self,
        between_views: Tensor,  # [V, V]
        within_warp: Tensor,  # [splines, splines]
        warps: Tensor,  # [V, 2, n, n]
        field_std: float,
    ) -> None:
        """Warps come from a Gaussian with these inverse covariances, field nodes from a wide one.

        Args:
            between_views: Inverse correlation of the warps of two views.
            within_warp: Inverse covariance of one component's coefficients.
            warps: Those at which the rows were linearised.
            field_std: Of a node's displacement, world units.
        """
        n = self.warp_unknowns
        both = torch.block_diag(within_warp, within_warp)
        self.matrix[:n, :n] += torch.kron(between_views, both.contiguous())
        self.right[:n] += (between_views @ warps.flatten(1).double() @ both).flatten()
        self.matrix.diagonal()[n:].add_(1 / field_std**2)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Steps of the warps [V, 2, splines] and of the field [field, 3], float64."""
        factor, _ = torch.linalg.cholesky_ex(self.matrix)  # the checking form waits for the GPU
        step = -torch.cholesky_solve(self.right[:, None], factor)[:, 0]
        warps, field = step[: self.warp_unknowns], step[self.warp_unknowns :]
        return warps.view(self.views, 2, -1), field.view(-1, 3)


def surface_cells(
    means: Tensor,  # [N, 3]
    cameras: Cameras,
    rows: int,
    columns: int,
) -> tuple[Tensor, Tensor]:
    """Surface points behind a grid of cells and how their pictures move with them.

    Returns:
        Points in the world [V, P, 3], and d(picture position) / d(point) in fractions of the
        longer side, zero where no Gaussian is near [V, P, 2, 3].
    """
    size = means.new_tensor([columns / cameras.width, rows / cameras.height])
    pixels, depths = project_points(means, cameras)
    cell = (pixels * size).floor()
    inside = (cell >= 0).all(-1) & (cell[..., 0] < columns) & (cell[..., 1] < rows)
    inside &= depths > 0
    index = torch.where(inside, cell[..., 1] * columns + cell[..., 0], rows * columns).long()
    front = means.new_full((len(cameras), rows * columns + 1), math.inf)
    front.scatter_reduce_(1, index, depths, "amin")
    nearest = -front[:, :-1].view(-1, 1, rows, columns)
    for _ in range(2):  # the outline's pixels may lie in cells without a centre
        wider = F.max_pool2d(nearest, 3, stride=1, padding=1)
        nearest = torch.where(torch.isfinite(nearest), nearest, wider)
    depth = -nearest.flatten(1)  # [V, P]
    seen = torch.isfinite(depth)
    depth = torch.where(seen, depth, 1.0)

    longer = max(cameras.width, cameras.height)
    grid = pixel_positions(rows, columns, means).reshape(-1, 2) * longer
    middle = means.new_tensor([cameras.width / 2, cameras.height / 2])
    focal = cameras.K[:, [0, 1], [0, 1]]  # [V, 2]
    slope = (grid + middle - cameras.K[:, None, :2, 2]) / focal[:, None]  # [V, P, 2]
    in_camera = torch.cat([slope, torch.ones_like(slope[..., :1])], -1) * depth[..., None]
    rotation = cameras.camera_to_world[:, :3, :3]
    points = in_camera @ rotation.mT + cameras.centres[:, None]
    scale = (focal[:, None] / longer / depth[..., None]) * seen[..., None]  # [V, P, 2]
    axes = torch.eye(2, 3, device=means.device, dtype=means.dtype)
    backwards = torch.zeros_like(axes)
    backwards[:, 2] = 1
    jacobian = scale[..., None] * (axes - slope[..., None] * backwards)
    return points, jacobian @ rotation.mT[:, None]


def field_basis(
    points: Tensor,  # [..., 3]
    centre: Tensor,  # [3]
    half_size: float,
    nodes: int,
) -> Tensor:  # [..., nodes^3]
    """Trilinear weights of the nodes of a grid over a cube; they sum to 1 inside it."""
    scaled = ((points - centre) / half_size + 1) / 2 * (nodes - 1)
    index = torch.arange(nodes, device=points.device, dtype=points.dtype)
    x, y, z = (1 - (scaled.clamp(0, nodes - 1)[..., None] - index).abs()).clamp(min=0).unbind(-2)
    return (x[..., :, None, None] * y[..., None, :, None] * z[..., None, None, :]).flatten(-3)


def square_root_rows(tensor: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """Two rows per cell whose normal equations are the summed ones: L^T with tensor = L L^T.

    Args:
        tensor: Sums of slope slope^T; positive semi-definite up to rounding. [..., 2, 2]
        pull: Sums of slope times residual. [..., 2]

    Returns:
        Rows [..., 2, 2] and right-hand sides [..., 2].
    """
    xx, xy, yy = tensor[..., 0, 0], tensor[..., 0, 1], tensor[..., 1, 1]
    floor = 1e-6 * (xx + yy) + 1e-12
    first = (xx + floor).sqrt()
    mixed = xy / first
    second = (yy + floor - mixed.square()).clamp_min(1e-12).sqrt()
    rows = torch.stack(
        [torch.stack([first, mixed], -1), torch.stack([torch.zeros_like(first), second], -1)], -2
    )
    top = pull[..., 0] / first
    bottom = (pull[..., 1] - mixed * top) / second
    return rows, torch.stack([top, bottom], -1)

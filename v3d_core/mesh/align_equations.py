"""Equations of the warps that lay pictures on a known surface, and their joint solution.

Points of the surface are read in every picture that sees them; the colours of the points are free
and eliminated, so that pictures are compared with each other and never with a blurred mean. The
outline of the mesh is exact and is compared with the masks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import project_points, resize_cameras
from ..mesh_queries import MeshQueries, cast_pixels
from ..structures import Cameras
from ..view_warps import pixel_positions, read_at, spline_basis
from .taps import Taps

SAME_DISTANCE = 1e-3  # share of the distance to the camera by which a surface hides itself
GAIN_HOLD = 10.0  # white pixels of one picture that hold its gain at 1: dark channels have none
SMALLEST_GAIN = 0.1
TYPICAL_GAIN = 0.1  # a view further than this from the middle one, as a logarithm, says no more
REWEIGHTINGS = 3  # of readings towards those that most views share


@dataclass
class SurfaceReadings:
    """Points on a mesh that at least two views see, and where they are in the pictures.

    Attributes:
        positions: Of all points in all views, fractions of the longer side from the picture's
            middle. [V, P, 2]
        view, point: Which of them are read. [R] int64 each
        share: Pixels (of a picture with `resolution` pixels along its longer side) that a reading
            stands for. [R]
        splines: From coefficients (view, node) to readings.
        nodes: Spline nodes along a side.
    """

    positions: Tensor
    view: Tensor
    point: Tensor
    share: Tensor
    splines: Taps
    nodes: int

    @classmethod
    def of(
        cls,
        queries: MeshQueries,
        cameras: Cameras,
        *,
        lattice: int,
        resolution: int,
        least_facing: float,
        edge_px: float,
        edge_depth: float,
        nodes: int,
    ) -> SurfaceReadings:
        """What a lattice of rays from every camera meets.

        Args:
            queries: The mesh.
            cameras: Of the pictures.
            lattice: Rays along the longer side of each picture.
            resolution: Longer side of the pictures compared, px.
            least_facing: Cosine to the view below which a reading is left out.
            edge_px: Readings this near to another part of the surface are left out, px of
                `resolution`.
            edge_depth: What lies this far off a point's tangent plane is another part, world units.
            nodes: Spline nodes along a side.
        """
        points, normals = lattice_points(queries, cameras, lattice)
        towards = cameras.centres[:, None] - points  # [V, P, 3]
        distance = towards.norm(dim=-1)
        facing = (towards * normals).sum(-1) / distance
        pixels, depth = project_points(points, cameras)
        size = points.new_tensor([cameras.width, cameras.height])
        longer = max(cameras.width, cameras.height)
        seen = (facing > least_facing) & (depth > 0) & ((pixels > 0) & (pixels < size)).all(-1)
        seen &= reaches(queries, cameras.centres, points)
        step = edge_px * longer / resolution
        seen &= clear_of_edges(queries, cameras, points, normals, step, edge_depth)
        # the area of a point's picture: a point counts once, shared between the views
        area = facing / distance.square() * (seen & (seen.sum(0) > 1))
        share = area / area.sum(0).clamp(min=1e-9) * (resolution / lattice) ** 2
        view, point = share.nonzero().unbind(1)
        positions = (pixels - size / 2) / longer
        index, weight = spline_taps(positions[view, point], nodes)
        splines = Taps(index + view[:, None] * nodes**2, weight, len(cameras) * nodes**2)
        return cls(positions, view, point, share[view, point], splines, nodes)

    def displacements(self, warps: Tensor) -> Tensor:  # [V, 2, n, n] -> [R, 2]
        """Warps at the readings."""
        return self.splines.apply(warps.flatten(2).mT.flatten(0, 1).contiguous())

    def gathered(self, pulls: Tensor) -> Tensor:  # [R, 2] -> [V, 2, n, n]
        """The adjoint of `displacements`."""
        total = pulls.new_zeros(self.splines.texels, 2)
        self.splines.adjoint(pulls, total)
        return total.view(-1, self.nodes, self.nodes, 2).permute(0, 3, 1, 2)

    def mean(self, values: Tensor, weights: Tensor) -> Tensor:  # [R, C], [R] -> [R, C]
        """The weighted mean over a point's readings, for each of them."""
        both = torch.cat([values * weights[:, None], weights[:, None]], dim=1)
        total = both.new_zeros(self.positions.shape[1], both.shape[1])
        total = total.index_add_(0, self.point, both)[self.point]
        return total[:, :-1] / total[:, -1:].clamp(min=1e-9)


def spline_taps(positions: Tensor, nodes: int) -> tuple[Tensor, Tensor]:  # [R, 2] -> [R, 16] each
    """The 16 nodes (row by row) whose splines reach places in the picture, and their weights."""
    first = ((positions + 0.5) * (nodes - 3)).floor().long().clamp(0, nodes - 4)
    reach = torch.arange(4, device=positions.device)
    near = first[..., None] + reach  # [R, 2, 4]
    x, y = (
        spline_basis(nodes, positions[:, axis].contiguous()).gather(1, near[:, axis])
        for axis in (0, 1)
    )
    index = near[:, 1, :, None] * nodes + near[:, 0, None]
    return index.flatten(1), (y[:, :, None] * x[:, None]).flatten(1)


def lattice_points(
    queries: MeshQueries, cameras: Cameras, lattice: int
) -> tuple[Tensor, Tensor]:  # [P, 3] each
    """Points that a lattice of rays meets, and their normals towards the view that met them."""
    scale = lattice / max(cameras.width, cameras.height)
    width, height = (max(1, round(s * scale)) for s in (cameras.width, cameras.height))
    coarse = resize_cameras(cameras, width, height)
    hits = cast_pixels(queries, coarse)
    met = hits.face >= 0
    face = hits.face[met]
    points = queries.points(face, hits.barycentric[met])
    a, b, c = queries.vertices[queries.faces[face]].unbind(1)
    normals = F.normalize(torch.linalg.cross(b - a, c - a), dim=-1)
    view = met.nonzero()[:, 0]
    towards = cameras.centres[view] - points
    return points, normals * torch.where((towards * normals).sum(-1, keepdim=True) < 0, -1.0, 1.0)


def reaches(queries: MeshQueries, centres: Tensor, points: Tensor) -> Tensor:  # [V, P] bool
    """Whether points are the first thing on the way from the camera centres."""
    rays = points - centres[:, None]
    origins = centres[:, None].expand_as(rays)
    hits = queries.cast(origins.reshape(-1, 3), rays.reshape(-1, 3))
    return (hits.distance > 1 - SAME_DISTANCE).view(rays.shape[:2])


def clear_of_edges(
    queries: MeshQueries,
    cameras: Cameras,
    points: Tensor,  # [P, 3]
    normals: Tensor,  # [P, 3]
    step: float,
    edge_depth: float,
) -> Tensor:  # [V, P] bool
    """Whether what is seen `step` pixels beside points lies on their tangent planes, or is nothing."""
    pixels, _ = project_points(points, cameras)
    to_world = cameras.camera_to_world[:, :3, :3] @ torch.linalg.inv(cameras.K)
    clear = torch.ones(pixels.shape[:2], dtype=torch.bool, device=points.device)
    for x, y in ((step, 0), (-step, 0), (0, step), (0, -step)):
        beside = F.pad(pixels + pixels.new_tensor([x, y]), (0, 1), value=1.0)
        rays = torch.einsum("vij,vpj->vpi", to_world, beside)
        origins = cameras.centres[:, None].expand_as(rays)
        hits = queries.cast(origins.reshape(-1, 3), rays.reshape(-1, 3))
        distance = hits.distance.view(pixels.shape[:2])
        missed = torch.isinf(distance)
        met = origins + rays * torch.where(missed, 0.0, distance)[..., None]
        clear &= missed | (((met - points) * normals).sum(-1).abs() < edge_depth)
    return clear


@dataclass
class ColourRows:
    """Linearised differences between the readings of the points.

    Attributes:
        value: Colours without gains. [R, 3]
        slope: Derivatives of the colours along x and y, gains included. [R, 3, 2]
        residual: Colours, gains included, minus the points' mean. [R, 3]
        weight: Pixels, less where the residual is large. [R]
    """

    value: Tensor
    slope: Tensor
    residual: Tensor
    weight: Tensor

    def error(self) -> Tensor:
        """Weighted mean square of the residuals. Scalar"""
        squares = self.weight * self.residual.square().mean(-1)
        return squares.sum() / self.weight.sum().clamp(min=1e-9)

    def errors(self, readings: SurfaceReadings) -> Tensor:  # [V]
        """The same of each view's readings, 0 where a view has none."""
        squares = self.weight * self.residual.square().mean(-1)
        sums = self.weight.new_zeros(len(readings.positions), 2)
        sums.index_add_(0, readings.view, torch.stack([squares, self.weight], dim=-1))
        return sums[:, 0] / sums[:, 1].clamp(min=1e-9)


def read_colours(
    readings: SurfaceReadings,
    planes: Tensor,  # [V, 10, h, w]
    warps: Tensor,  # [V, 2, n, n]
    gains: Tensor,  # [V, 3]
    outlier: float,
) -> ColourRows:
    """Read the points where the warps say.

    Args:
        readings: The points.
        planes: Straight colours, their slopes (x then y of each colour), and the coverage, by which
            readings near the background count less.
        warps: Present coefficients.
        gains: Present factors of the colours.
        outlier: Residual of all channels at which a reading counts half.
    """
    view, point = readings.view, readings.point
    places = readings.positions.clone()
    places[view, point] += readings.displacements(warps)
    read = read_at(planes, places)[view, :, point]  # [R, 10]
    value, slope, solid = read[:, :3], read[:, 3:9].unflatten(1, (3, 2)), read[:, 9]
    graded, factors = value * gains[view], gains[view, :, None]
    share = weight = readings.share * solid.clamp(0, 1).square()
    residual = graded - readings.mean(graded, weight)
    for _ in range(REWEIGHTINGS):
        weight = share / (1 + residual.square().sum(1) / outlier**2)
        residual = graded - readings.mean(graded, weight)
    return ColourRows(value, slope * factors, residual, weight)


def solve_gains(readings: SurfaceReadings, rows: ColourRows) -> Tensor:  # [V, 3]
    """Factors of the colours that make the readings agree; their typical logarithm is 0.

    Least squares over factors and the points' colours, of which the colours are eliminated.
    """
    views, points = readings.positions.shape[:2]
    weight = rows.weight.new_zeros(views, points)
    weight[readings.view, readings.point] = rows.weight
    value = weight.new_zeros(3, views, points)
    value[:, readings.view, readings.point] = rows.value.T
    weighted = weight * value
    own = (weighted * value).sum(-1)  # [3, V]
    cross = weighted @ (weighted / weight.sum(0).clamp(min=1e-9)).mT
    matrix = torch.diag_embed(own + GAIN_HOLD) - cross
    hold = torch.full_like(own, GAIN_HOLD)
    # one dark or spoiled view must not shade all others, hence the clamps
    logs = torch.linalg.solve(matrix.double(), hold.double()).clamp(min=SMALLEST_GAIN).log()
    middle = logs.median(dim=1, keepdim=True).values
    typical = middle + (logs - middle).clamp(-TYPICAL_GAIN, TYPICAL_GAIN).mean(1, keepdim=True)
    return (logs - typical).exp().T.to(rows.value.dtype)


def outline_blocks(
    masks: Tensor,  # [V, 1, h, w]
    coverage: Tensor,  # [V, 1, h, w]
    slopes: Tensor,  # [V, 1, h, w, 2]
    nodes: int,
    cells: int,
    outlier: float,
) -> tuple[Tensor, Tensor]:
    """Normal equations of masks against the outline of the mesh, one block per view.

    Args:
        masks: Read where the warps say.
        coverage: Of the mesh.
        slopes: Derivatives of the masks.
        nodes: Spline nodes along a side.
        cells: Along a side, over which slopes are summed up.
        outlier: Residual at which a pixel counts half.

    Returns:
        Matrices [V, 2 n^2, 2 n^2] and right-hand sides [V, 2 n^2].
    """
    residual, slope = (masks - coverage)[:, 0], slopes[:, 0]
    height, width = residual.shape[1:]
    likely = 1 / (1 + residual.square() / outlier**2)
    x, y = slope.unbind(-1)
    products = torch.stack([x * x, x * y, y * y, x * residual, y * residual], dim=1)
    longer = max(height, width)
    rows, columns = (max(1, round(cells * side / longer)) for side in (height, width))
    pooled = F.adaptive_avg_pool2d(products * likely[:, None], (rows, columns))
    pooled = pooled.flatten(2) * (height * width / (rows * columns))  # [V, 5, C]
    place = pixel_positions(rows, columns, masks)
    basis = torch.einsum(
        "ym,xn->yxmn",
        spline_basis(nodes, place[:, 0, 1]),
        spline_basis(nodes, place[0, :, 0]),
    ).reshape(rows * columns, -1)
    xx, xy, yy = (basis.T @ (pooled[:, k, :, None] * basis) for k in range(3))
    matrix = torch.cat([torch.cat([xx, xy], -1), torch.cat([xy, yy], -1)], -2)
    return matrix, (pooled[:, 3:] @ basis).flatten(1)


def solve_warps(
    readings: SurfaceReadings,
    rows: ColourRows,
    colour_weight: float,
    outline: tuple[Tensor, Tensor],
    between_views: Tensor,  # [V, V]
    within_warp: Tensor,  # [n^2, n^2]
    warps: Tensor,  # [V, 2, n, n]
    iterations: int,
) -> Tensor:  # [V, 2, n, n]
    """One Gauss-Newton step of all warps together.

    Conjugate gradients, preconditioned by the blocks of the single views: only neighbours that
    share points are coupled otherwise.

    Args:
        readings: The points.
        rows: Their colours, linearised.
        colour_weight: Inverse variance of a pixel's colours.
        outline: Blocks and right-hand sides, already weighted.
        between_views: Inverse correlation of the warps of two views, float64.
        within_warp: Inverse covariance of one component's coefficients, float64.
        warps: Where the rows were linearised.
        iterations: Of the conjugate gradients.
    """
    views = len(warps)
    blocks, pull = outline[0].double(), outline[1].double()

    def prior(x: Tensor) -> Tensor:  # [V, 2 n^2]
        return (between_views @ (x.view(views, 2, -1) @ within_warp).flatten(1)).view(views, -1)

    def by_points(change: Tensor) -> Tensor:  # [R, 3] -> [V, 2 n^2]
        away = change - readings.mean(change, rows.weight)
        pulls = (rows.slope * (away * rows.weight[:, None])[..., None]).sum(1)
        return colour_weight * readings.gathered(pulls).flatten(1).double()

    def apply(x: Tensor) -> Tensor:
        moved = readings.displacements(x.view_as(warps).to(warps.dtype))
        change = (rows.slope * moved[:, None]).sum(-1)
        return by_points(change) + (blocks @ x[..., None])[..., 0] + prior(x)

    own = colour_weight * own_blocks(readings, rows).double() + blocks
    both = torch.block_diag(within_warp, within_warp)
    own = own + between_views.diagonal()[:, None, None] * both
    factor, _ = torch.linalg.cholesky_ex(own)
    right = -(by_points(rows.residual) + pull + prior(warps.flatten(1).double()))
    step = conjugate_gradients(
        apply, right, lambda x: torch.cholesky_solve(x[..., None], factor)[..., 0], iterations
    )
    return step.view_as(warps).to(warps.dtype)


def own_blocks(readings: SurfaceReadings, rows: ColourRows) -> Tensor:  # [V, 2 n^2, 2 n^2]
    """Blocks of the single views in the equations of the points."""
    total = rows.weight.new_zeros(readings.positions.shape[1])
    total = total.index_add_(0, readings.point, rows.weight)[readings.point]
    weight = rows.weight * (1 - rows.weight / total.clamp(min=1e-9))
    tensor = torch.einsum("rci,rcj,r->rij", rows.slope, rows.slope, weight)
    nodes = readings.nodes
    blocks = []
    for v in range(len(readings.positions)):
        used = readings.view == v
        place = readings.positions[v, readings.point[used]]
        down, across = (spline_basis(nodes, place[:, axis].contiguous()) for axis in (1, 0))
        basis = (down[:, :, None] * across[:, None]).flatten(1)
        own = tensor[used]
        xx, xy, yy = (basis.T @ (own[:, i, j, None] * basis) for i, j in ((0, 0), (0, 1), (1, 1)))
        blocks.append(torch.cat([torch.cat([xx, xy], -1), torch.cat([xy, yy], -1)], -2))
    return torch.stack(blocks)


def conjugate_gradients(
    apply: Callable[[Tensor], Tensor],
    right: Tensor,
    precondition: Callable[[Tensor], Tensor],
    iterations: int,
) -> Tensor:
    """Solve apply(x) = right for a symmetric positive definite map (Hestenes and Stiefel 1952)."""
    x, residual = torch.zeros_like(right), right
    better = precondition(residual)
    direction, power = better, (residual * better).sum()
    for _ in range(iterations):
        image = apply(direction)
        along = power / (direction * image).sum().clamp(min=1e-300)
        x, residual = x + along * direction, residual - along * image
        better = precondition(residual)
        power, before = (residual * better).sum(), power
        direction = better + power / before.clamp(min=1e-300) * direction
    return x

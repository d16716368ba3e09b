"""Distances and paints of composed objects in plain torch: the oracle of the tracing kernel.

Distances are lower bounds outside, so that sphere tracing (Hart 1996) never steps through a
surface. Boxes, cylinders, capsules, frusta and tori are exact (Quilez, "distance functions",
iquilezles.org). Ellipsoids and superquadrics are {g <= 1} of a norm g: because g is convex,
(g - 1) / |grad g| never exceeds the distance. What carves must be bounded inside as well: balls,
the exact ones and surfaces of revolution are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..demo_object import AnalyticObject
from ..images import linear_to_srgb, srgb_to_linear
from .objects_paint import second_colour
from .objects_table import (
    LEAST_WIDTH,
    PROFILE_POINTS,
    Join,
    Kind,
    ObjectTable,
    profile_slope_scale,
    step_scale,
)

CORE = 0.3  # below this value of g an ellipsoid's interior is measured by its shortest axis


def analytic_object(table: ObjectTable, index: int) -> AnalyticObject:
    """One object of a table as `procedural.render_maps` draws it, and as `object_mesh` meshes it."""
    return AnalyticObject(
        sdf=lambda points: object_sdf(table, index, points),
        albedo=lambda points: object_albedo(table, index, points),
        bound=float(table.bounds[index]),
    )


def object_sdf(
    table: ObjectTable,
    index: int,
    points: Tensor,  # [M, 3]
) -> Tensor:  # [M]
    """Signed distances to an object, never more than true outside; negative inside.

    Args:
        table: The objects.
        index: Which of them.
        points: World units, float32 or float64. [M, 3]
    """
    distance = torch.full_like(points[:, 0], math.inf)
    for part in range(int(table.counts[index])):
        other = part_sdf(table, index, part, points)
        width = max(float(table.widths[index, part]), LEAST_WIDTH)
        if int(table.joins[index, part]) == Join.CARVE:
            distance = -_smooth_minimum(-distance, other, width)
        else:
            distance = _smooth_minimum(distance, other, width)
    return distance


def object_albedo(
    table: ObjectTable,
    index: int,
    points: Tensor,  # [M, 3]
) -> Tensor:  # [M, 3]
    """Base colours of surface points, sRGB in [0, 1]: the paint of the part that is nearest.

    Args:
        table: The objects.
        index: Which of them.
        points: World units. [M, 3]
    """
    distance = torch.full_like(points[:, 0], math.inf)
    owner = torch.zeros(len(points), dtype=torch.long, device=points.device)
    for part in range(int(table.counts[index])):
        other = part_sdf(table, index, part, points)
        if int(table.joins[index, part]) == Join.CARVE:
            other = -other
            nearer = other > distance
        else:
            nearer = other < distance
        distance = torch.where(nearer, other, distance)
        owner = torch.where(nearer, part, owner)
    colours = torch.zeros_like(points)
    for part in owner.unique().tolist():
        chosen = (owner == part).nonzero()[:, 0]
        local = part_coordinates(table, index, part, points[chosen])
        mix = second_colour(table, index, part, local)[:, None]
        first, second = srgb_to_linear(table.colours[index, part].to(points))
        colours[chosen] = first + mix * (second - first)
    return linear_to_srgb(colours)


def part_coordinates(table: ObjectTable, index: int, part: int, points: Tensor) -> Tensor:
    """World points in a part's frame, world units. [M, 3] -> [M, 3]"""
    offset = points - table.centres[index, part].to(points)
    return offset @ table.rotations[index, part].to(points).T


def part_sdf(table: ObjectTable, index: int, part: int, points: Tensor) -> Tensor:
    """Signed distances to one part, at least those to its ball. [M, 3] -> [M]"""
    p = part_coordinates(table, index, part, points)
    sizes = table.sizes[index, part].to(points)
    kind = Kind(int(table.kinds[index, part]))
    if kind == Kind.REVOLUTION:
        distance = _revolution(p, sizes[0], table.profiles[index, part].to(points))
    else:
        distance = _DISTANCES[kind](p, sizes)
    amplitude, frequency, phase = table.bumps[index, part].to(points)
    if amplitude > 0:
        phases = phase * p.new_tensor([1.0, 1.7, 2.3])
        wave = torch.sin(frequency * p + phases).prod(dim=-1)
        distance = (distance - amplitude * wave) * step_scale(table.bumps[index, part].to(points))
    return torch.maximum(distance, p.norm(dim=-1) - table.radii[index, part].to(points))


def _smooth_minimum(a: Tensor, b: Tensor, width: float) -> Tensor:
    overlap = (width - (a - b).abs()).clamp_min(0)
    return torch.minimum(a, b) - overlap * overlap * (0.25 / width)


def _ellipsoid(p: Tensor, sizes: Tensor) -> Tensor:
    q = p / sizes[:3]
    g = q.norm(dim=-1)
    outer = g * (g - 1) / (q / sizes[:3]).norm(dim=-1).clamp_min(1e-12)
    return torch.where(g > CORE, outer, (g - 1) * sizes[:3].min())


def _box(p: Tensor, sizes: Tensor) -> Tensor:
    beyond = p.abs() - sizes[:3]
    return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(dim=-1).clamp_max(0) - sizes[3]


def _cylinder(p: Tensor, sizes: Tensor) -> Tensor:
    rho = torch.hypot(p[:, 0], p[:, 2])
    beyond = torch.stack([rho, p[:, 1].abs()], dim=-1) - sizes[:2]
    return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(dim=-1).clamp_max(0) - sizes[2]


def _capsule(p: Tensor, sizes: Tensor) -> Tensor:
    y = (p[:, 1].abs() - sizes[0]).clamp_min(0)
    return torch.stack([p[:, 0], y, p[:, 2]], dim=-1).norm(dim=-1) - sizes[1]


def _frustum(p: Tensor, sizes: Tensor) -> Tensor:
    # nearest point on the end or on the sloping side, in the plane through the axis
    below, above, half, rounding = sizes[:4]
    rho, y = torch.hypot(p[:, 0], p[:, 2]), p[:, 1]
    end = torch.where(y < 0, below, above)
    cap = torch.stack([rho - torch.minimum(rho, end), y.abs() - half], dim=-1)
    slope = above - below
    along = ((above - rho) * slope + (half - y) * 2 * half) / (slope**2 + 4 * half**2)
    along = along.clamp(0, 1)
    side = torch.stack([rho - above + slope * along, y - half + 2 * half * along], dim=-1)
    inside = (side[:, 0] < 0) & (cap[:, 1] < 0)
    distance = torch.minimum(cap.norm(dim=-1), side.norm(dim=-1))
    return torch.where(inside, -distance, distance) - rounding


def _torus(p: Tensor, sizes: Tensor) -> Tensor:
    return torch.hypot(torch.hypot(p[:, 0], p[:, 2]) - sizes[0], p[:, 1]) - sizes[1]


def _superquadric(p: Tensor, sizes: Tensor) -> Tensor:
    x, y, z = (p.abs() / sizes[:3]).clamp_min(1e-4).unbind(-1)
    across, along = sizes[3], sizes[4]
    u = (x**across + z**across) ** (1 / across)
    g = (u**along + y**along) ** (1 / along)
    du, dy = (u / g) ** (along - 1), (y / g) ** (along - 1)
    dx, dz = du * (x / u) ** (across - 1), du * (z / u) ** (across - 1)
    slope = (torch.stack([dx, dy, dz], dim=-1) / sizes[:3]).norm(dim=-1)
    return torch.where(g > CORE, (g - 1) / slope, (g - 1) * sizes[:3].min())


def _revolution(p: Tensor, half: Tensor, profile: Tensor) -> Tensor:
    rho, y = torch.hypot(p[:, 0], p[:, 2]), p[:, 1]
    spans = PROFILE_POINTS - 2
    t = ((y / half).clamp(-1, 1) + 1) * (0.5 * spans)
    span = t.long().clamp_max(spans - 1)
    t = t - span
    radius = 0.5 * (
        (1 - t) ** 2 * profile[span]
        + (1 + 2 * t * (1 - t)) * profile[span + 1]
        + t**2 * profile[span + 2]
    )
    side = (rho - radius) * profile_slope_scale(profile, half)
    return torch.maximum(side, y.abs() - half)


_DISTANCES = {
    Kind.ELLIPSOID: _ellipsoid,
    Kind.BOX: _box,
    Kind.CYLINDER: _cylinder,
    Kind.CAPSULE: _capsule,
    Kind.FRUSTUM: _frustum,
    Kind.TORUS: _torus,
    Kind.SUPERQUADRIC: _superquadric,
}

"""Analytic objects made of signed distances and painted by formulas: the demo robot, a test ball.

Distances are those of sphere, capsule, rounded box, torus and capped cylinder, joined by the
polynomial smooth minimum (Quilez, "distance functions" and "smooth minimum", iquilezles.org);
all of them change by at most one unit per unit, so sphere tracing never steps through a surface.
The shapes, sizes and colours of the robot are free choices.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Vector = tuple[float, float, float]

# Robot coordinates times this are world units: over the 18 views of the V3D orbit the longer side
# of the projection is then 70 % of the frame (measured from the masks by the tests).
ROBOT_SCALE = 0.92
ROBOT_CENTRE: Vector = (0.04, -0.01, -0.07)  # middle of its bounding box, robot coordinates

_CREAM, _TEAL, _DARK_TEAL = (0.95, 0.90, 0.78), (0.10, 0.58, 0.56), (0.05, 0.30, 0.34)
_RED, _BLUE, _YELLOW = (0.88, 0.08, 0.08), (0.10, 0.22, 0.85), (0.98, 0.80, 0.12)
_ORANGE, _INK, _WHITE = (0.96, 0.55, 0.14), (0.08, 0.08, 0.11), (0.97, 0.97, 0.97)
_GREY, _GREEN, _PURPLE = (0.55, 0.57, 0.62), (0.30, 0.66, 0.18), (0.50, 0.22, 0.62)


@dataclass(frozen=True)
class AnalyticObject:
    """A solid whose surface and paint are known exactly.

    Attributes:
        sdf: Points [N, 3] in world units to signed distances [N], negative inside.
        albedo: Points [N, 3] on the surface to base colours [N, 3], sRGB in [0, 1].
        bound: Radius of a ball about the origin that holds the whole object, world units.
    """

    sdf: Callable[[Tensor], Tensor]
    albedo: Callable[[Tensor], Tensor]
    bound: float


def sphere_object(radius: float = 0.6) -> AnalyticObject:
    """A ball about the origin with smooth colour waves, different in all eight octants."""

    def sdf(points: Tensor) -> Tensor:
        return points.norm(dim=-1) - radius

    def albedo(points: Tensor) -> Tensor:
        x, y, z = (points / radius).unbind(-1)
        waves = [3.0 * x + y, 4.0 * y - z + 1.0, 3.0 * z + 2.0 * x - 1.0]
        return 0.5 + 0.4 * torch.stack([wave.sin() for wave in waves], dim=-1)

    return AnalyticObject(sdf, albedo, radius)


def demo_robot() -> AnalyticObject:
    """A waving robot: red ear on +X, blue backpack on -Z, the letter R on its chest (+Z)."""
    return AnalyticObject(_robot_sdf, _robot_albedo, bound=1.0)


def _offset(points: Tensor, centre: Vector) -> Tensor:
    return points - points.new_tensor(centre)


def _ball(points: Tensor, centre: Vector, radius: float) -> Tensor:
    return _offset(points, centre).norm(dim=-1) - radius


def _capsule(points: Tensor, start: Vector, end: Vector, radius: float) -> Tensor:
    axis = points.new_tensor(end) - points.new_tensor(start)
    from_start = _offset(points, start)
    along = ((from_start @ axis) / (axis @ axis)).clamp(0, 1)
    return (from_start - along[:, None] * axis).norm(dim=-1) - radius


def _rounded_box(points: Tensor, centre: Vector, half: Vector, radius: float) -> Tensor:
    beyond = _offset(points, centre).abs() - (points.new_tensor(half) - radius)
    return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(dim=-1).clamp_max(0) - radius


def _disc_along_x(
    points: Tensor, centre: Vector, radius: float, half: float, edge: float
) -> Tensor:
    x, y, z = _offset(points, centre).unbind(-1)
    beyond = torch.stack([torch.hypot(y, z) - radius + edge, x.abs() - half + edge], dim=-1)
    return beyond.clamp_min(0).norm(dim=-1) + beyond.amax(dim=-1).clamp_max(0) - edge


def _ring_about_z(points: Tensor, centre: Vector, radius: float, thickness: float) -> Tensor:
    x, y, z = _offset(points, centre).unbind(-1)
    return torch.hypot(torch.hypot(x, y) - radius, z) - thickness


def _smooth_minimum(a: Tensor, b: Tensor, width: float) -> Tensor:
    overlap = (width - (a - b).abs()).clamp_min(0) / width
    return torch.minimum(a, b) - overlap * overlap * (0.25 * width)


def _robot_frame(points: Tensor) -> Tensor:
    return points / ROBOT_SCALE + points.new_tensor(ROBOT_CENTRE)


def _robot_parts(p: Tensor) -> dict[str, Tensor]:
    # distances [N] of every part in robot coordinates; the order is that of _PAINT
    return {
        "torso": _rounded_box(p, (0.0, -0.12, 0.0), (0.31, 0.29, 0.23), 0.11),
        "head": _rounded_box(p, (0.0, 0.40, 0.0), (0.29, 0.20, 0.23), 0.15),
        "neck": _capsule(p, (0.0, 0.10, 0.0), (0.0, 0.30, 0.0), 0.12),
        "right_arm": _capsule(p, (0.33, 0.02, 0.0), (0.58, 0.10, 0.13), 0.07),
        "left_arm": _capsule(p, (-0.33, 0.02, 0.0), (-0.47, -0.28, 0.12), 0.07),
        "right_leg": _capsule(p, (0.15, -0.38, 0.0), (0.17, -0.64, 0.0), 0.09),
        "left_leg": _capsule(p, (-0.15, -0.38, 0.0), (-0.17, -0.64, 0.0), 0.09),
        "right_foot": _rounded_box(p, (0.18, -0.71, 0.06), (0.13, 0.07, 0.19), 0.05),
        "left_foot": _rounded_box(p, (-0.18, -0.71, 0.06), (0.13, 0.07, 0.19), 0.05),
        "right_hand": _ball(p, (0.62, 0.12, 0.14), 0.10),
        "ring": _ring_about_z(p, (-0.50, -0.42, 0.14), 0.10, 0.035),
        "right_ear": _disc_along_x(p, (0.30, 0.40, 0.0), 0.14, 0.06, 0.03),
        "left_ear": _disc_along_x(p, (-0.30, 0.40, 0.0), 0.08, 0.05, 0.02),
        "right_eye": _ball(p, (0.12, 0.43, 0.20), 0.085),
        "left_eye": _ball(p, (-0.12, 0.42, 0.20), 0.060),
        "aerial": _capsule(p, (0.10, 0.55, -0.02), (0.16, 0.69, -0.02), 0.03),
        "aerial_ball": _ball(p, (0.165, 0.71, -0.02), 0.065),
        "backpack": _rounded_box(p, (0.04, -0.08, -0.30), (0.19, 0.20, 0.13), 0.06),
        "nozzle": _capsule(p, (0.12, -0.28, -0.32), (0.12, -0.33, -0.33), 0.06),
    }


def _robot_sdf(points: Tensor) -> Tensor:
    parts = _robot_parts(_robot_frame(points))
    distance = parts.pop("torso")
    for name in ("neck", "head", "right_arm", "left_arm", "right_leg", "left_leg"):
        distance = _smooth_minimum(distance, parts.pop(name), 0.05)
    for part in parts.values():
        distance = torch.minimum(distance, part)
    return distance * ROBOT_SCALE


def _paint(p: Tensor, layers: list[tuple[Vector, Tensor]], ground: Vector) -> Tensor:
    # ground colour with layers of (colour, where) over it, the last on top
    colour = p.new_tensor(ground).expand(len(p), 3)
    for layer, where in layers:
        colour = torch.where(where[:, None], p.new_tensor(layer), colour)
    return colour


def _letter_r(x: Tensor, y: Tensor) -> Tensor:
    # inside a letter R about the origin, 0.16 wide and 0.24 high
    stem = ((x + 0.06).abs() < 0.022) & (y.abs() < 0.12)
    bowl = ((torch.hypot((x - 0.01).clamp_min(0), y - 0.06) - 0.04).abs() < 0.021) & (x > -0.06)
    along = ((0.02 - y) / 0.14).clamp(0, 1)
    leg = torch.hypot(x - (-0.01 + 0.08 * along), y - (0.02 - 0.14 * along)) < 0.021
    return stem | bowl | (leg & (y > -0.12))


def _paint_torso(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    front = z > 0.15
    badge = front & (torch.hypot(x, y + 0.03) < 0.19)
    stripes = (torch.frac((y + 1.0) / 0.11) < 0.45) & (y < -0.22)
    buttons = front & (torch.hypot(x - 0.22, y - 0.09) < 0.035)
    return _paint(
        p,
        [
            (_CREAM, stripes),
            (_YELLOW, badge),
            (_INK, badge & _letter_r(x, y + 0.03)),
            (_GREEN, buttons),
        ],
        _TEAL,
    )


def _paint_head(p: Tensor) -> Tensor:
    x, y, z = p.unbind(-1)
    angle = torch.atan2(x, z)
    column, row = angle / 0.45, (y - 0.40) / 0.13
    dots = torch.hypot(torch.frac(column + 50) - 0.5, torch.frac(row + 50) - 0.5) < 0.27
    mouth = (z > 0.1) & ((y - 0.285 - 1.6 * (x - 0.03) ** 2).abs() < 0.014) & (x.abs() < 0.13)
    return _paint(p, [(_ORANGE, dots & (z < 0.05) & (y < 0.54)), (_INK, mouth)], _CREAM)


def _paint_eye(p: Tensor, x: float, y: float, radius: float) -> Tensor:
    pupil = torch.hypot(p[:, 0] - x - 0.2 * radius, p[:, 1] - y) < 0.5 * radius
    return _paint(p, [(_INK, pupil & (p[:, 2] > 0.2))], _WHITE)


def _paint_bands(p: Tensor, first: Vector, second: Vector, axis: int, period: float) -> Tensor:
    return _paint(p, [(second, torch.frac((p[:, axis] + 10.0) / period) < 0.5)], first)


def _paint_backpack(p: Tensor) -> Tensor:
    x, y, _ = p.unbind(-1)
    cross = ((x - y - 0.10).abs() < 0.03) | ((y - 0.03).abs() < 0.02)
    return _paint(p, [(_WHITE, cross & (p[:, 2] < -0.25))], _BLUE)


def _solid(colour: Vector) -> Callable[[Tensor], Tensor]:
    return lambda p: _paint(p, [], colour)


_PAINT: dict[str, Callable[[Tensor], Tensor]] = {
    "torso": _paint_torso,
    "head": _paint_head,
    "neck": _solid(_GREY),
    "right_arm": lambda p: _paint_bands(p, _GREY, _DARK_TEAL, 0, 0.07),
    "left_arm": lambda p: _paint_bands(p, _GREY, _ORANGE, 1, 0.09),
    "right_leg": lambda p: _paint_bands(p, _GREY, _INK, 1, 0.08),
    "left_leg": lambda p: _paint_bands(p, _GREY, _INK, 1, 0.08),
    "right_foot": _solid(_PURPLE),
    "left_foot": _solid(_GREEN),
    "right_hand": _solid(_YELLOW),
    "ring": _solid(_PURPLE),
    "right_ear": _solid(_RED),
    "left_ear": _solid(_YELLOW),
    "right_eye": lambda p: _paint_eye(p, 0.12, 0.43, 0.085),
    "left_eye": lambda p: _paint_eye(p, -0.12, 0.42, 0.060),
    "aerial": _solid(_GREY),
    "aerial_ball": _solid(_GREEN),
    "backpack": _paint_backpack,
    "nozzle": _solid(_INK),
}


def _robot_albedo(points: Tensor) -> Tensor:
    p = _robot_frame(points)
    parts = _robot_parts(p)
    nearest = torch.stack(list(parts.values())).argmin(dim=0)
    colours = torch.zeros_like(p)
    for index, name in enumerate(parts):
        chosen = (nearest == index).nonzero()[:, 0]
        colours[chosen] = _PAINT[name](p[chosen])
    return colours

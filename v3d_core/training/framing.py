"""How large an object stands in the frames of an orbit."""

from __future__ import annotations

import torch
from scipy.spatial import ConvexHull, QhullError
from torch import Tensor

from ..cameras import Orbit, orbit_cameras, project_points

REACH = 0.96  # of the frame: no silhouette leaves it, however far it stands off its centre
NEAREST = 0.95  # of the distance to the cameras: no point comes nearer to them than the rest
HALVINGS = 40  # of the interval that holds the scale; exact to float32
HULL_FROM = 64  # points; fewer are projected as they are


def turned(vectors: Tensor, azimuth_deg: float) -> Tensor:  # [N, 3] -> [N, 3]
    """Vectors turned about +Y, counter-clockwise seen from above: +Z towards +X."""
    angle = torch.tensor(azimuth_deg, dtype=torch.float64).deg2rad()
    sin, cos, zero, one = angle.sin(), angle.cos(), angle.new_zeros(()), angle.new_ones(())
    rows = [torch.stack(row) for row in ([cos, zero, sin], [zero, one, zero], [-sin, zero, cos])]
    return (vectors.double() @ torch.stack(rows).to(vectors.device).T).to(vectors)


def box_centre(points: Tensor) -> Tensor:  # [N, 3] -> [3]
    """Middle of the axis-aligned box."""
    return (points.amin(0) + points.amax(0)) / 2


def scale_to_fill(
    points: Tensor,  # [N, 3]
    orbit: Orbit,
    fill: float,
) -> float:
    """Scale about the origin at which the longest silhouette takes `fill` of the frame's side.

    The longest side of the box around the silhouette counts, in the view where it is longest. An
    object that would leave the frame in some view, since it stands off its centre there, becomes
    smaller.

    Args:
        points: Vertices that are in use, centred on the origin.
        orbit: Cameras of square frames.
        fill: Share of the frame's side, above 0 and below 1.

    Raises:
        ValueError: All points are one, or `fill` is out of range.
    """
    if not 0 < fill < 1:
        raise ValueError(f"scale_to_fill: fill must lie between 0 and 1, got {fill}")
    outer = _outer_points(points.detach().double().cpu())
    farthest = float(outer.norm(dim=-1).amax())
    if not farthest > 0:
        raise ValueError("scale_to_fill: the object is a single point")
    cameras = orbit_cameras(orbit, 1, 1).to(torch.float64)
    low, high = 0.0, NEAREST * orbit.radius / farthest
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        boxes = silhouette_boxes(outer * middle, cameras)
        longest = float((boxes[:, 2:] - boxes[:, :2]).amax())
        reach = 2 * float((boxes - 0.5).abs().amax())
        if longest < fill and reach < REACH:
            low = middle
        else:
            high = middle
    return low


def silhouette_boxes(points: Tensor, cameras) -> Tensor:  # [N, 3] -> [V, 4]
    """Left, top, right and bottom of what points in front of cameras cover, pixels."""
    pixels, _ = project_points(points, cameras)
    return torch.cat([pixels.amin(1), pixels.amax(1)], dim=-1)


def _outer_points(points: Tensor) -> Tensor:  # [N, 3] -> [N', 3]
    """Corners of the convex hull: no silhouette's box needs others."""
    if len(points) < HULL_FROM:
        return points
    try:
        return points[torch.from_numpy(ConvexHull(points.numpy()).vertices).long()]
    except QhullError:  # flat objects have no hull
        return points

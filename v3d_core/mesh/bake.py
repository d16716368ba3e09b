"""The plain texture: every texel the weighted mean of the views that see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import project_points
from ..structures import Cameras, Mesh, Views
from .texels import Texels
from .visibility import LEAST_COSINE, ViewMaps

TEXELS_PER_BATCH = 2_000_000
LEAST_WEIGHT = 1e-4  # of a texel that counts as seen; a pixel seen head-on weighs 1
BOX_MARGIN_PX = 0.5  # around a face in a picture, for rounding
DEPTH_SLACK_PX = 1.5  # how far a texel may lie beside the ray its pixel's depth was cast along


@dataclass(frozen=True)
class SurfacePoints:
    """Places on the surface, as the texels show them."""

    positions: Tensor  # [T, 3] world units
    normals: Tensor  # [T, 3] unit face normals

    @staticmethod
    def of(mesh: Mesh, texels: Texels, normals: Tensor) -> SurfacePoints:
        """Of all texels; `normals` are the faces'. [M, 3]"""
        return SurfacePoints(texels.on_surface(mesh, mesh.vertices), normals[texels.face])

    def __getitem__(self, some: slice | Tensor) -> SurfacePoints:
        return SurfacePoints(self.positions[some], self.normals[some])


def blend_views(
    points: SurfacePoints,
    face: Tensor,  # [T]
    corners: Tensor,  # [M, 3, 3]
    views: Views,
    maps: list[ViewMaps],
    tick: Callable[[float], None] = lambda share: None,
) -> tuple[Tensor, Tensor]:
    """Confidence-weighted means of what the views show at places of the surface.

    Args:
        points: T places.
        face: The face that each place lies in. [T] int64
        corners: Of the faces, world units. [M, 3, 3]
        views: The pictures.
        maps: What each view sees.
        tick: Told the finished share several times a second.

    Returns:
        Colours [T, 3], 0 where no view sees the place, and summed weights [T].
    """
    colours = torch.zeros_like(points.positions)
    weights = colours.new_zeros(len(colours))
    for v, seen in enumerate(maps):
        shown = may_show(corners, views.cameras[v], seen)
        for start in range(0, len(colours), TEXELS_PER_BATCH):
            some = start + shown[face[start : start + TEXELS_PER_BATCH]].nonzero()[:, 0]
            weighted, weight = look_up(points[some], views.cameras[v], views.images[v], seen)
            colours[some] += weighted
            weights[some] += weight
            tick((v + (start + 1) / len(colours)) / len(maps))
    colours /= weights.clamp_min(1e-12)[:, None]
    return colours, weights


def may_show(
    corners: Tensor,  # [M, 3, 3]
    camera: Cameras,
    maps: ViewMaps,
) -> Tensor:  # [M] bool
    """Faces that a view may show something of; of the others `look_up` finds nothing anywhere.

    They look towards the camera, and in the box around them in the picture there is a pixel that
    counts.
    """
    a, b, c = corners.unbind(1)
    normals = torch.linalg.cross(b - a, c - a)
    towards = (camera.centres - corners) * normals[:, None]  # of each corner
    facing = (towards.sum(-1) > 0).any(dim=-1)
    pixels, depth = (
        t[0].unflatten(0, (-1, 3)) for t in project_points(corners.flatten(0, 1), camera)
    )
    size = pixels.new_tensor([camera.width, camera.height])
    # the first pixel that interpolation may read, and one past the last
    first = (pixels.amin(dim=1) - 0.5 - BOX_MARGIN_PX).floor()
    last = (pixels.amax(dim=1) - 0.5 + BOX_MARGIN_PX).floor() + 2
    left, top = torch.minimum(first.clamp_min(0), size).long().unbind(-1)
    right, bottom = torch.minimum(last.clamp_min(0), size).long().unbind(-1)
    counts = F.pad((maps.weight > 0).long().cumsum(0).cumsum(1), (1, 0, 1, 0))
    inside = counts[bottom, right] - counts[top, right] - counts[bottom, left] + counts[top, left]
    # a face that reaches behind the camera has no box
    return facing & ((inside > 0) | (depth <= 0).any(dim=-1))


def look_up(
    points: SurfacePoints,
    camera: Cameras,
    image: Tensor,  # [H, W, 3]
    maps: ViewMaps,
) -> tuple[Tensor, Tensor]:
    """What one view shows at places of the surface.

    Pixels count by their weight before they are interpolated, so that nothing comes in from behind
    an edge.

    Returns:
        Colours times weights [T, 3] and weights [T], both 0 where the view does not see the place.
    """
    pixels, depth = (t[0] for t in project_points(points.positions, camera))
    size = pixels.new_tensor([camera.width, camera.height])
    place = (2 * pixels / size - 1)[None, :, None]  # [1, T, 1, 2]
    weighted = torch.cat([image * maps.weight[..., None], maps.weight[..., None]], dim=-1)
    found = _sample(weighted, place, "bilinear")
    surface = _sample(maps.depth.nan_to_num(posinf=0.0)[..., None], place, "nearest")[:, 0]
    towards = F.normalize(camera.centres - points.positions, dim=-1)
    cosine = (towards * points.normals).sum(-1)
    inside = (depth > 0) & ((pixels > 0) & (pixels < size)).all(dim=-1)
    slope = 1 + 1 / cosine.clamp_min(LEAST_COSINE)
    slack = DEPTH_SLACK_PX * depth / camera.K[0, 0, 0] * slope
    seen = inside & (cosine > LEAST_COSINE) & ((depth - surface).abs() < slack)
    found = torch.where(seen[:, None], found, 0.0)
    return found[:, :3], found[:, 3]


def _sample(maps: Tensor, place: Tensor, mode: str) -> Tensor:  # [H, W, C] -> [T, C]
    picture = maps.permute(2, 0, 1)[None].to(place.dtype)
    return F.grid_sample(picture, place, mode, "zeros", align_corners=False)[0, :, :, 0].T

"""What views say about the offset of a surface: colours of its points, and its outline."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..cameras import camera_rays, project_points
from ..images import premultiply
from ..mesh_queries import NOTHING, MeshQueries
from ..structures import Cameras, Views
from ..view_warps import gaussian_blur, picture_gradients
from .geometry_config import GeometryConfig
from .shape import unfolded
from .visibility import LEAST_COSINE, ViewMaps, pixel_shifts

NO_COVERAGE = 1e-3  # below it a blurred picture has no colour to speak of
SURFACE_PX = 4.0  # a point farther from what its pixel sees is hidden
OUTSIDE_PX = 1.0  # beside an outline, where the ray must miss the mesh
BAND_PX = 2  # about the outline, where a pixel's coverage is counted by `RAYS` x `RAYS` rays
RAYS = 3
LEAST_SWING = 0.5  # px that an outline must move when the surface does by one
LEAST_STEEPNESS = 0.25  # of an outline, in that of a straight edge
LEAST_OUTLINE_PX = 0.25  # typical error of outlines below which none counts as far off
ROBUST_ROUNDS = 2


class Rows(NamedTuple):
    """Equations for the offset between vertices, px.

    Attributes:
        vertices: Whose offsets are mixed. [E, 3] int64
        shares: By how much each. [E, 3]
        weight: Weights times squared slopes. [E]
        pull: Weights times slopes times values. [E]
        error: Weighted mean square of the values, robust.
    """

    vertices: Tensor
    shares: Tensor
    weight: Tensor
    pull: Tensor
    error: float


class Readings(NamedTuple):
    """What one view says: of points on the surface, or of edges of the contour.

    Attributes:
        which: Points, or edges. [R] int64
        weight: How far each is believed. [R]
        value: Colours [R, 3], or how far the mask's outline lies outside the mesh's, px [R].
        slope: Their change per px of offset. Same shape
    """

    which: Tensor
    weight: Tensor
    value: Tensor
    slope: Tensor


class Surface(NamedTuple):
    """A mesh as it came, each place once, and what stays the same while it moves."""

    place: Tensor  # [N] of every vertex of the mesh
    places: Tensor  # [P, 3]
    faces: Tensor  # [M, 3]
    normals: Tensor  # [P, 3]
    pixel: float  # world units
    inward: Tensor  # [P] px that a vertex may go in
    outward: Tensor  # [P] and out
    ends: Tensor  # [E, 2] vertices of the edges that have two faces
    sides: Tensor  # [E, 2] and these faces
    face: Tensor  # [R] of the points that colours are read at
    shares: Tensor  # [R, 3] of its corners in them
    directions: Tensor  # [R, 3] normals there

    def moved(self, offsets: Tensor) -> Tensor:  # [P] px -> [P, 3]
        """Places after offsets along the normals; faces do not fold."""
        moved = self.places + (self.pixel * offsets)[:, None] * self.normals
        return unfolded(self.places, moved, self.faces)

    def allowed(self, offsets: Tensor) -> Tensor:  # [P] px
        """Offsets within the room that each vertex has."""
        return torch.maximum(torch.minimum(offsets, self.outward), -self.inward)


def blurred(views: Views, blur: float) -> Tensor:  # [V, 10, H, W]
    """Straight colours, coverage, and the slopes of the colours, per px along x and then y."""
    planes = torch.cat([premultiply(views.images, views.masks), views.masks[..., None]], dim=-1)
    planes = gaussian_blur(planes.permute(0, 3, 1, 2), blur)
    # straight colours: blurred premultiplied ones would darken towards the outline
    colours = planes[:, :3] / planes[:, 3:].clamp_min(NO_COVERAGE)
    slopes = picture_gradients(colours) / max(colours.shape[2:])
    return torch.cat([colours, planes[:, 3:], slopes.permute(0, 4, 1, 2, 3).flatten(1, 2)], dim=1)


def _read_at(planes: Tensor, pixels: Tensor) -> Tensor:  # [C, H, W], [R, 2] -> [R, C]
    height, width = planes.shape[1:]
    grid = 2 * pixels / pixels.new_tensor([width, height]) - 1
    found = F.grid_sample(planes[None], grid[None, None], align_corners=False)
    return found[0, :, 0].T


def _swings(
    points: Tensor, normals: Tensor, pixel: float, camera: Cameras
) -> tuple[Tensor, Tensor, Tensor]:
    # where points are seen [R, 2], their depths [R], and px they go per px of offset [R, 2]
    pixels, depths = project_points(points, camera)
    moved, _ = project_points(points + pixel * normals, camera)
    return pixels[0], depths[0], moved[0] - pixels[0]


def read_colours(
    surface: Surface,
    points: Tensor,  # [R, 3]
    normals: Tensor,  # [M, 3]
    seen: ViewMaps,
    pictures: Tensor,  # [10, H, W]
    camera: Cameras,
) -> Readings:
    """Colours of the surface's points in one view, where it sees them well."""
    towards = F.normalize(camera.centres - points, dim=-1)
    index = ((towards * normals[surface.face]).sum(-1) > LEAST_COSINE).nonzero()[:, 0]
    places, directions = points[index], surface.directions[index]
    pixels, depths, swings = _swings(places, directions, surface.pixel, camera)
    height, width = seen.depth.shape
    x, y = pixels.floor().long().unbind(-1)
    inside = (depths > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    x, y = x.clamp(0, width - 1), y.clamp(0, height - 1)
    there = (seen.depth[y, x] - depths).abs() < SURFACE_PX * surface.pixel
    weight = torch.where(inside & there, seen.weight[y, x], 0.0)
    good = weight.nonzero()[:, 0]
    values = _read_at(pictures, pixels[good])
    slope = (values[:, 4:].view(-1, 2, 3) * swings[good][..., None]).sum(dim=1)
    return Readings(index[good], weight[good], values[:, :3], slope)


def colour_rows(
    surface: Surface, queries: MeshQueries, readings: list[Readings], config: GeometryConfig
) -> Rows:
    """Least variance of the colours of each point; the colour it has in common drops out."""
    count = len(surface.face)
    index, weight, value, slope = (torch.cat(parts) for parts in zip(*readings, strict=True))

    def means(weight: Tensor, values: Tensor) -> Tensor:  # [R], [R, 3] -> [P, 3]
        sums = values.new_zeros(count, 4)
        sums.index_add_(0, index, weight[:, None] * F.pad(values, (0, 1), value=1.0))
        return sums[:, :3] / sums[:, 3:].clamp_min(1e-6)

    likely = weight
    for _ in range(ROBUST_ROUNDS):
        off = value - means(likely, value)[index]
        likely = weight / (1 + off.square().sum(-1) / config.colour_outlier**2)
    off = value - means(likely, value)[index]
    slope = slope - means(likely, slope)[index]
    per_face = len(surface.face) // len(surface.faces)
    areas = areas_of(queries.vertices, surface.faces) / (surface.pixel**2 * per_face)
    scale = areas[surface.face] / config.colour_std**2
    sums = off.new_zeros(count, 2)
    products = torch.stack([slope.square().sum(-1), -(slope * off).sum(-1)], dim=-1)
    sums.index_add_(0, index, likely[:, None] * products)
    error = float((likely * off.square().sum(-1)).sum() / likely.sum().clamp_min(1e-6))
    corners = surface.faces[surface.face]
    return Rows(corners, surface.shares, scale * sums[:, 0], scale * sums[:, 1], error)


def read_outline(
    surface: Surface,
    queries: MeshQueries,
    normals: Tensor,  # [M, 3]
    seen: ViewMaps,
    pictures: Tensor,  # [10, H, W]
    camera: Cameras,
    blur: float,
) -> Readings:
    """How far the mask's outline lies outside the mesh's, at the mesh's contour edges."""
    vertices, centre = queries.vertices, camera.centres[0]
    front = ((centre - vertices[surface.faces[:, 0]]) * normals).sum(-1) > 0
    index = (front[surface.sides[:, 0]] != front[surface.sides[:, 1]]).nonzero()[:, 0]
    middle = vertices[surface.ends[index]].mean(dim=1)
    outward = F.normalize(surface.normals[surface.ends[index]].mean(dim=1), dim=-1)
    pixels, depths, swings = _swings(middle, outward, surface.pixel, camera)
    beside = middle + OUTSIDE_PX * surface.pixel * outward
    free = queries.cast(centre.expand_as(beside), beside - centre).face == NOTHING
    swing = swings.norm(dim=-1)
    coverage = gaussian_blur(mesh_coverage(queries, seen.face, camera)[None, None], blur)
    both = torch.cat([pictures[None, 3:4], coverage], dim=1)
    slopes = picture_gradients(both.mean(dim=1, keepdim=True))[0, 0] / max(both.shape[2:])
    mask, covered, *slope = _read_at(torch.cat([both[0], slopes.permute(2, 0, 1)]), pixels).T
    steepness = -(torch.stack(slope, -1) * swings).sum(-1) / swing.clamp_min(1e-6)
    # a straight edge has this steepness where it crosses one half
    steep = steepness > LEAST_STEEPNESS / (blur * math.sqrt(2 * math.pi))
    value = (mask - covered) / steepness.clamp_min(1e-6)
    height, width = seen.face.shape
    margin = pixels.new_tensor([width, height]) - pixels
    inside = (depths > 0) & (pixels > 1).all(-1) & (margin > 1).all(-1)
    good = free & inside & steep & (swing > LEAST_SWING) & (value.abs() < 2 * blur + 1)
    length = (vertices[surface.ends[index, 0]] - vertices[surface.ends[index, 1]]).norm(dim=-1)
    weight = length / surface.pixel
    return Readings(index[good], weight[good], value[good], swing[good])


def mesh_coverage(queries: MeshQueries, face: Tensor, camera: Cameras) -> Tensor:  # [H, W]
    """Which part of every pixel the mesh covers; several rays only near the outline."""
    hit = (face != NOTHING).float()
    both = torch.stack([hit, 1 - hit])
    reach = 2 * BAND_PX + 1
    # a square, one axis after the other
    both = F.max_pool2d(both, (1, reach), 1, (0, BAND_PX))
    both = F.max_pool2d(both, (reach, 1), 1, (BAND_PX, 0))
    rows = both.all(0).flatten().nonzero()[:, 0]
    origins, directions = (rays[0].reshape(-1, 3)[rows] for rays in camera_rays(camera))
    right, down = (camera.camera_to_world[0, :3, k] / camera.K[0, k, k] for k in (0, 1))
    shifts = directions.new_tensor(pixel_shifts(RAYS)) @ torch.stack([right, down])
    aims = directions[:, None] + shifts  # [P, RAYS^2, 3]
    found = queries.cast(origins[:, None].expand_as(aims).reshape(-1, 3), aims.reshape(-1, 3))
    covered = hit.flatten()
    covered[rows] = (found.face != NOTHING).view(-1, RAYS * RAYS).float().mean(1)
    return covered.view_as(hit)


def outline_rows(
    surface: Surface, queries: MeshQueries, readings: list[Readings], config: GeometryConfig
) -> Rows:
    """Outlines of all views; one far from what the others say hardly counts."""
    index, weight, value, swing = (torch.cat(parts) for parts in zip(*readings, strict=True))
    ends = surface.ends[index]
    typical = float(value.abs().median()) if len(value) else 0.0
    limit = config.outline_outlier * max(typical, LEAST_OUTLINE_PX)
    likely = weight / (1 + value.square() / limit**2)
    error = float((likely * value.square()).sum() / likely.sum().clamp_min(1e-6))
    likely = likely / config.outline_std**2
    shares = swing.new_tensor([0.5, 0.5, 0.0]).expand(len(ends), 3)
    vertices = torch.cat([ends, ends[:, :1]], dim=-1)
    return Rows(vertices, shares, likely * swing.square(), likely * swing * value, error)


def areas_of(vertices: Tensor, faces: Tensor) -> Tensor:  # [M]
    """World units squared."""
    a, b, c = vertices[faces].unbind(1)
    return torch.linalg.cross(b - a, c - a).norm(dim=-1) / 2

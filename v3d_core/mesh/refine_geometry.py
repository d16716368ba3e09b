"""Vertices moved along their normals until colours and outlines of the views agree better.

Gauss-Newton steps from blurred pictures to sharp ones, for one offset per vertex. A point of the
surface should have one colour in all views that see it well: the first-order change of the variance
of its colours says which way to go (as patch-free multi-view stereo does). Where the surface turns
away from a view, the mesh's coverage should be the mask. Neighbours move alike, and no move is free,
so that what no view shows goes with what is around it.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..fit_threads import cores_for_warp
from ..images import crop_views
from ..mesh_queries import MeshQueries
from ..mesh_repair import with_normals
from ..progress import Progress, silent
from ..structures import Cameras, Mesh, Views
from .geometry_config import GeometryConfig
from .geometry_readings import (
    BAND_PX,
    Rows,
    Surface,
    areas_of,
    blurred,
    colour_rows,
    outline_rows,
    read_colours,
    read_outline,
)
from .solver import conjugate_gradients
from .texture_config import RefineConfig
from .topology import edge_pairs, sides
from .visibility import face_normals, look

LOOK = RefineConfig()  # how far pixels can be trusted is judged as for the texture
START = 0.05  # px off the surface, where rays for the room about it begin
LEAST_ERROR = 1e-6  # mean square that is as good as none
MOST_POINTS = 200_000  # on the surface; a lighter mesh gets 4 a face, a heavier one 1
REACH = 3.0  # standard deviations of a blur, as of `gaussian_blur`
SOLVER_STEPS = 60  # of conjugate gradients


class RefinedGeometry(NamedTuple):
    """The mesh with moved vertices and new normals, and what was done; fit for JSON."""

    mesh: Mesh
    report: dict[str, Any]


@torch.no_grad()
def refine_geometry(
    mesh: Mesh,
    views: Views,
    config: GeometryConfig | None = None,
    *,
    progress: Progress = silent,
) -> RefinedGeometry:
    """The mesh moved towards what the views agree on.

    Faces, uvs and colours stay as they are; watertight in, watertight out. Vertices in one place
    move as one. No vertex goes farther than `most_px`, nor nearer to the surface opposite than
    `clearance` allows, and faces that would turn too far stay. Readings far from the others' hardly
    count. Where colours or outlines agree less in the end, as with views that contradict each other,
    the mesh stays as it was.

    Args:
        mesh: Faces outward, in the frame of the views' cameras, on their device.
        views: Pictures with masks that agree with each other.
        config: See `GeometryConfig`; None takes the defaults.
        progress: Told after every view of every step; raising in it cancels.

    Raises:
        ValueError: The mesh has no faces, or a vertex is not finite.
    """
    config = config or GeometryConfig()
    if not len(mesh.faces):
        raise ValueError(
            f"refine_geometry: the mesh has {len(mesh.vertices)} vertices but 0 faces; it needs "
            "at least 1"
        )
    steps = [blur for blur in config.blurs_px for _ in range(config.rounds)]
    # once more at the start and at the end: has it become better?
    looks = (config.blurs_px[-1], *steps, config.blurs_px[-1])
    agreements = []
    # what is farther from every outline than the widest blur reaches says nothing
    views = crop_views(views, math.ceil(REACH * max(config.blurs_px)) + BAND_PX)
    pictures_at = lru_cache(maxsize=1)(partial(blurred, views))  # rounds share them
    with cores_for_warp(mesh.device):
        surface = surface_of(mesh, views.cameras, config)
        offsets = torch.zeros(len(surface.places), device=mesh.device)  # px
        for number, blur in enumerate(looks):
            pictures = pictures_at(blur)
            queries = MeshQueries(surface.moved(offsets), surface.faces)
            normals, points = face_normals(queries), queries.points(surface.face, surface.shares)
            colours, outlines = [], []
            for v in range(len(views)):
                camera = views.cameras[v]
                seen = look(queries, normals, camera, views.masks[v], LOOK)
                colours.append(read_colours(surface, points, normals, seen, pictures[v], camera))
                outlines.append(
                    read_outline(surface, queries, normals, seen, pictures[v], camera, blur)
                )
                done = number * len(views) + v + 1
                progress(done, len(looks) * len(views), text="Laying the surface on the views")
            rows = (
                colour_rows(surface, queries, colours, config),
                outline_rows(surface, queries, outlines, config),
            )
            if number in (0, len(looks) - 1):
                agreements.append([part.error for part in rows])
            else:
                offsets = surface.allowed(offsets + solve_step(surface, rows, offsets, config))
    report = _report(offsets, agreements)
    if not report["kept"]:
        return RefinedGeometry(mesh, report)
    vertices = surface.moved(offsets)[surface.place].to(mesh.vertices.dtype)
    return RefinedGeometry(with_normals(dataclasses.replace(mesh, vertices=vertices)), report)


def surface_of(mesh: Mesh, cameras: Cameras, config: GeometryConfig) -> Surface:
    """A mesh before it moves, and how far each vertex may go."""
    places, index = mesh.vertices.float().unique(dim=0, return_inverse=True)
    faces = index[mesh.faces]
    normals = with_normals(Mesh(places, faces)).normals
    assert normals is not None
    distance = (cameras.centres.to(places) - places.mean(0)).norm(dim=-1)
    pixel = float((distance / cameras.K[:, 0, 0].to(places)).mean())
    queries = MeshQueries(places, faces)
    room = []
    for way in (-normals, normals):
        free = queries.cast(places + START * pixel * way, way).distance / pixel
        room.append((config.clearance * free).clamp(max=config.most_px))
    pairs = edge_pairs(faces.cpu().numpy())
    start, end = (torch.from_numpy(x).to(places.device) for x in sides(faces.cpu().numpy()))
    first, second = (torch.from_numpy(x).to(places.device) for x in pairs[:2])
    points = _points_of_face(2 if 4 * len(faces) <= MOST_POINTS else 1).to(places)
    face = torch.arange(len(faces), device=places.device).repeat_interleave(len(points))
    shares = points.repeat(len(faces), 1)
    return Surface(
        index, places, faces, normals, pixel, room[0], room[1],
        torch.stack([start[first], end[first]], dim=-1),
        torch.stack([first, second], dim=-1) % len(faces),
        face, shares, (shares[..., None] * normals[faces[face]]).sum(dim=1),
    )  # fmt: skip


def _points_of_face(parts: int) -> Tensor:  # [1 or 4, 3]
    # centres of equal triangles
    if parts == 1:
        return torch.full((1, 3), 1 / 3)
    return torch.cat([torch.full((1, 3), 1 / 3), torch.full((3, 3), 1 / 6) + torch.eye(3) / 2])


def solve_step(
    surface: Surface, rows: tuple[Rows, ...], offsets: Tensor, config: GeometryConfig
) -> Tensor:  # [P]
    """The change of the offsets that all equations ask for together, px."""
    vertices, shares, weight, pull = (torch.cat(x) for x in list(zip(*rows, strict=True))[:4])
    areas = areas_of(surface.places, surface.faces)[:, None].expand(-1, 3) / (3 * surface.pixel**2)
    ends, own = surface.ends, torch.zeros_like(offsets)
    own.index_add_(0, surface.faces.flatten(), areas.flatten() / config.offset_std**2)

    def held(values: Tensor) -> Tensor:  # [P, 1]: prior and neighbours
        change = config.smoothness * (values[ends[:, 0]] - values[ends[:, 1]])
        result = own[:, None] * values
        return result.index_add_(0, ends[:, 0], change).index_add_(0, ends[:, 1], -change)

    def product(values: Tensor) -> Tensor:  # [P, 1]
        mixed = weight * (shares * values[vertices, 0]).sum(dim=-1)
        result = held(values)[:, 0]
        result.index_add_(0, vertices.flatten(), (shares * mixed[:, None]).flatten())
        return result[:, None]

    right = -held(offsets[:, None])[:, 0]
    right.index_add_(0, vertices.flatten(), (shares * pull[:, None]).flatten())
    diagonal = own + config.smoothness * torch.bincount(ends.flatten(), minlength=len(own))
    diagonal.index_add_(0, vertices.flatten(), (shares.square() * weight[:, None]).flatten())
    inverse = 1 / diagonal[:, None].clamp_min(1e-12)
    start = torch.zeros_like(right[:, None])
    step = conjugate_gradients(product, right[:, None], inverse, start, SOLVER_STEPS)[:, 0]
    return step.clamp(-config.step_px, config.step_px)


def _report(offsets: Tensor, agreements: list[list[float]]) -> dict[str, Any]:
    (colour, outline), (colour_after, outline_after) = agreements
    kept = colour_after <= max(colour, LEAST_ERROR) and outline_after <= max(outline, LEAST_ERROR)
    return {
        "kept": kept,
        "moved_px": float(offsets.square().mean().sqrt()) if kept else 0.0,
        "most_moved_px": float(offsets.abs().max()) if kept else 0.0,
        "colour_rms": math.sqrt(colour),
        "colour_rms_after": math.sqrt(colour_after if kept else colour),
        "outline_px": math.sqrt(outline),
        "outline_px_after": math.sqrt(outline_after if kept else outline),
    }

"""Vertices moved and holes closed: smoothing that keeps the volume, and laying onto a field."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from ..mesh_repair import face_areas, fill_holes, select_faces, signed_volume, taubin_smooth
from ..mesh_repair import with_normals as _with_normals
from ..structures import Mesh
from .parts import part_labels
from .topology import count_edges

Distance = Callable[[Tensor], tuple[Tensor, Tensor]]  # [N, 3] -> [N], [N, 3] unit

VOLUME_ROUNDS = 4  # of Newton's method for an offset; each squares the error
FIELD_STEPS = 3  # of Newton's method onto the field
FIELD_REACH = 0.02  # of the diagonal: a vertex farther off belongs to another surface
LEAST_COSINE = 0.3  # between a face before and after; turned more, it would fold
POINTS_PER_BATCH = 1 << 15
LARGEST_LID = 0.25  # of the part's area: a larger loop is a rim, as of a bowl or a sheet


def close_holes(
    mesh: Mesh, max_edges: int, tick: Callable[[], None] = lambda: None
) -> tuple[Mesh, int]:
    """Close loops of up to so many open edges, but no rims, and count them.

    A loop is a rim when its lid would have more than `LARGEST_LID` of the area of its part.
    """
    filled = fill_holes(mesh, max_edges, tick)
    tick()
    old, added = len(mesh.faces), len(filled.faces) - len(mesh.faces)
    if not added:
        return mesh, 0
    areas = face_areas(filled)
    labels = torch.from_numpy(part_labels(filled.faces.cpu().numpy())).to(mesh.device)
    tick()
    part_area = torch.bincount(labels[:old], weights=areas[:old], minlength=int(labels.max()) + 1)
    # a lid is one triangle on old vertices, or a fan about one new vertex
    new = filled.faces[old:]
    middle = new.amax(dim=1)
    single = middle < len(mesh.vertices)
    place = torch.arange(added, device=mesh.device)
    lid = torch.where(single, len(filled.vertices) + place, middle)
    _, lid = torch.unique(lid, return_inverse=True)
    lid_area = torch.bincount(lid, weights=areas[old:])
    good = (lid_area[lid] <= LARGEST_LID * part_area[labels[old:]]) & (part_area[labels[old:]] > 0)
    count = len(torch.unique(lid[good]))
    if not count:
        return mesh, 0
    keep = torch.cat([torch.ones(old, dtype=torch.bool, device=mesh.device), good])
    return select_faces(filled, keep), count


def smooth_keeping_volume(
    mesh: Mesh, iterations: int, tick: Callable[[float], None] = lambda share: None
) -> Tensor:  # [N, 3]
    """Vertices after Taubin smoothing; a watertight mesh is moved along its normals to the volume
    it had."""
    smooth = taubin_smooth(mesh, iterations, tick)
    if not count_edges(mesh.faces.cpu().numpy()).watertight:
        return smooth.vertices
    tick(1.0)
    wanted = signed_volume(mesh)
    normals = _with_normals(smooth).normals
    assert normals is not None
    for _ in range(VOLUME_ROUNDS):
        tick(1.0)
        area = float(face_areas(smooth).sum())
        offset = (wanted - signed_volume(smooth)) / area
        smooth = dataclasses.replace(smooth, vertices=smooth.vertices + offset * normals)
    return smooth.vertices


def onto_surface(
    mesh: Mesh,
    distance: Distance,
    unit: float,
    tick: Callable[[float], None] = lambda share: None,
) -> tuple[Tensor, dict[str, float]]:  # [N, 3]
    """Vertices moved to where the signed distance is zero, without folding faces.

    Args:
        mesh: Near the surface of the field.
        distance: Signed distances and unit normals at points, as in `clean`.
        unit: Diagonal of the mesh, world units.
        tick: Told the finished share; raising in it cancels.

    Returns:
        New positions, and the mean distance to the surface before and after as shares of the
        diagonal. Vertices farther off than `FIELD_REACH`, and those whose faces would fold, stay.
    """
    start = mesh.vertices
    offsets, normals = _sampled(start, distance, tick, 0.0)
    first, near = offsets.abs(), offsets.abs() <= FIELD_REACH * unit
    moved = start
    for step in range(FIELD_STEPS):
        reach = FIELD_REACH * unit / FIELD_STEPS
        by = offsets.clamp(-reach, reach)[:, None] * normals
        moved = torch.where(near[:, None], moved - by, start)
        offsets, normals = _sampled(moved, distance, tick, (step + 1) / (FIELD_STEPS + 1))
    # where it went farther away the field is broken
    moved = torch.where((offsets.abs() <= first)[:, None], moved, start)
    moved = unfolded(start, moved, mesh.faces)
    after, _ = _sampled(moved, distance, tick, 1.0)
    return moved, {
        "field_distance_before": float(first.double().mean()) / unit,
        "field_distance": float(after.abs().double().mean()) / unit,
    }


def _sampled(
    points: Tensor, distance: Distance, tick: Callable[[float], None], share: float
) -> tuple[Tensor, Tensor]:
    parts = []
    for some in points.split(POINTS_PER_BATCH):
        parts.append(distance(some))
        tick(share)
    offsets, normals = (torch.cat(some) for some in zip(*parts, strict=True))
    return offsets.to(points), normals.to(points)


def unfolded(before: Tensor, after: Tensor, faces: Tensor) -> Tensor:
    """`after`, but corners of faces that would turn too far stay where they were."""
    while True:
        old, new = _face_normals(before, faces), _face_normals(after, faces)
        limit = LEAST_COSINE * old.norm(dim=-1) * new.norm(dim=-1)
        folded = torch.zeros(len(before), dtype=torch.bool, device=before.device)
        folded[faces[(old * new).sum(-1) < limit].reshape(-1)] = True
        folded &= (after != before).any(dim=-1)
        if not bool(folded.any()):
            return after
        after = torch.where(folded[:, None], before, after)


def _face_normals(vertices: Tensor, faces: Tensor) -> Tensor:  # [M, 3], not of unit length
    a, b, c = vertices[faces].double().unbind(1)
    return torch.linalg.cross(b - a, c - a)

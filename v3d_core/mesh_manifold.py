"""Edges that more than two faces share: the sheets that touch there are taken apart.

Marching cubes leaves a few where two surfaces pass through the same grid edge. Programs that ask
for a watertight mesh (slicers, boolean operations) refuse them.
"""

from __future__ import annotations

import dataclasses
import math
import operator
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from .mesh_repair import select_faces
from .structures import Mesh

Pairs = dict[tuple[int, int], list[tuple[int, int]]]  # edge (a < b) -> couples of faces


MAX_ROUNDS = 16  # of halving; each takes all over-used edges that share no face


def split_shared_edges(mesh: Mesh, tick: Callable[[], None] = lambda: None) -> Mesh:
    """Make every edge one of exactly two faces, without moving the surface.

    Around an over-used edge the faces are paired so that each pair encloses solid. First every
    vertex is copied for each of the fans of faces that only such edges held together: two bodies
    that touch along an edge come apart. Where one body pinches itself so that both ends of the
    edge stay in one fan, each pair gets a middle point of its own on the edge.

    Faces must be oriented outward; edges whose faces do not come in opposite pairs are left.
    `tick` is called between the steps.
    """
    pairs = _solid_pairs(mesh)
    tick()
    if not pairs:
        return mesh
    mesh = drop_fins(mesh)
    tick()
    pairs = _solid_pairs(mesh)
    tick()
    corners, sources = _separate_corners(mesh.faces.cpu().numpy(), pairs, len(mesh.vertices))
    source = torch.from_numpy(sources).to(mesh.device)
    mesh = _with_vertices(mesh, torch.from_numpy(corners).to(mesh.device), lambda x: x[source])
    for _ in range(MAX_ROUNDS):
        tick()
        pairs = _solid_pairs(mesh)
        if not pairs:
            break
        mesh = _halve_edges(mesh, pairs)
    return mesh


def drop_fins(mesh: Mesh) -> Mesh:
    """The mesh without pairs of faces that lie on each other back to back and enclose nothing."""
    faces = mesh.faces.cpu().numpy()
    ordered = np.sort(faces, axis=1)
    # even permutations of the sorted corners look one way, odd ones the other
    forward = (np.roll(ordered, 1, axis=1) == faces).all(1) | (
        np.roll(ordered, 2, axis=1) == faces
    ).all(1)
    forward |= (ordered == faces).all(1)
    _, index, counts = np.unique(ordered, axis=0, return_inverse=True, return_counts=True)
    index = index.reshape(-1)
    balance = np.bincount(index, weights=np.where(forward, 1.0, -1.0))
    fin = (counts[index] > 1) & (balance[index] == 0)
    return select_faces(mesh, torch.from_numpy(~fin).to(mesh.device)) if fin.any() else mesh


def _with_vertices(mesh: Mesh, faces: Tensor, change: Callable[[Tensor], Tensor]) -> Mesh:
    # the mesh with other faces, `change` applied to every tensor that has a row per vertex
    names = ("vertices", "normals", "uvs", "vertex_colours")
    held = {name: getattr(mesh, name) for name in names}
    changed = {name: None if value is None else change(value) for name, value in held.items()}
    return dataclasses.replace(mesh, faces=faces, **changed)


def _halve_edges(mesh: Mesh, pairs: Pairs) -> Mesh:
    """A middle point for each pair of faces; of edges that share a face only the first is done."""
    faces = mesh.faces.cpu().numpy().tolist()
    taken: set[int] = set()
    ends = []
    for (a, b), couples in pairs.items():
        around = {face for couple in couples for face in couple}
        if around & taken:
            continue
        taken |= around
        for couple in couples:
            middle = len(mesh.vertices) + len(ends)
            ends.append((a, b))
            for face in couple:
                whole = faces[face]
                faces[face] = [middle if vertex == b else vertex for vertex in whole]
                faces.append([middle if vertex == a else vertex for vertex in whole])
    first, second = torch.tensor(ends, device=mesh.device).unbind(-1)
    return _with_vertices(
        mesh,
        torch.tensor(faces, device=mesh.device),
        lambda x: torch.cat([x, (x[first] + x[second]) / 2]),
    )


def _shared_edges(faces: np.ndarray) -> dict[tuple[int, int], list[int]]:
    # faces around every undirected edge (a < b) of more than two, in ascending order of their sides
    count = int(faces.max(initial=0)) + 1
    ordered = _edge_codes(faces, count)
    ordered.sort()
    third = ordered[2:][ordered[2:] == ordered[:-2]]
    if not len(third):
        return {}
    around: dict[tuple[int, int], list[int]] = {}
    codes = _edge_codes(faces, count)
    for side in np.nonzero(np.isin(codes, third))[0].tolist():
        a, b = divmod(int(codes[side]), count)
        around.setdefault((a, b), []).append(side % len(faces))
    return around


def _edge_codes(faces: np.ndarray, count: int) -> np.ndarray:
    # one number a * count + b for each side [3M] sorts faster, and in less room, than pairs
    codes = np.empty(3 * len(faces), np.int64)
    for side, (a, b) in enumerate(((0, 1), (1, 2), (2, 0))):
        part = codes[side * len(faces) : (side + 1) * len(faces)]
        np.minimum(faces[:, a], faces[:, b], out=part)
        part *= count
        part += np.maximum(faces[:, a], faces[:, b])
    return codes


def _solid_pairs(mesh: Mesh) -> Pairs:
    """Pairs of faces with solid between them, for each edge (a < b) of more than two faces."""
    faces, pairs = mesh.faces.cpu().numpy(), {}
    shared = _shared_edges(faces)
    vertices = mesh.vertices.double().cpu().numpy() if shared else np.zeros((0, 3))
    for (a, b), around in shared.items():
        axis = vertices[b] - vertices[a]
        length = np.linalg.norm(axis)
        if length == 0:
            continue
        turns = sorted(
            (
                _angle(vertices, faces[face], a, b, axis / length),
                _runs_forward(faces[face], a, b),
                face,
            )
            for face in around
        )
        forward = [turn[1] for turn in turns]
        # turning about the axis, solid lies between a face that runs b -> a and the next, a -> b
        if len(turns) % 2 or any(map(operator.eq, forward, forward[1:])):
            continue
        start = forward.index(False)
        ring = [turn[2] for turn in turns[start:] + turns[:start]]
        pairs[a, b] = list(zip(ring[::2], ring[1::2], strict=True))
    return pairs


def _angle(vertices: np.ndarray, face: np.ndarray, a: int, b: int, axis: np.ndarray) -> float:
    # of the face's third corner about the axis, from an arbitrary but fixed direction
    third = next(v for v in face.tolist() if v not in (a, b))
    first = np.cross(axis, np.eye(3)[np.abs(axis).argmin()])
    arm = vertices[third] - vertices[a]
    return math.atan2(float(arm @ np.cross(axis, first)), float(arm @ first))


def _runs_forward(face: np.ndarray, a: int, b: int) -> bool:
    corners = face.tolist()
    return corners[(corners.index(a) + 1) % 3] == b


def _separate_corners(faces: np.ndarray, pairs: Pairs, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Faces with new vertex numbers, and the old number of every vertex.

    Corners at a vertex stay one vertex when a walk over faces leads from one to the other; at an
    over-used edge the walk crosses only within a pair.
    """
    affected = {vertex for edge in pairs for vertex in edge}
    touching: dict[int, list[int]] = {vertex: [] for vertex in affected}
    for face in np.nonzero(np.isin(faces, list(affected)).any(axis=1))[0].tolist():
        for vertex in set(faces[face].tolist()) & affected:
            touching[vertex].append(face)
    partners = {
        (edge, face): other
        for edge, couples in pairs.items()
        for couple in couples
        for face, other in (couple, couple[::-1])
    }
    corners, sources = faces.copy(), list(range(count))
    for vertex, around in touching.items():
        unseen, first_fan = set(around), True
        while unseen:
            fan = _fan(unseen.pop(), vertex, faces, set(around), partners, pairs)
            unseen -= fan
            if not first_fan:
                for face in fan:
                    corners[face][faces[face] == vertex] = len(sources)
                sources.append(vertex)
            first_fan = False
    return corners, np.array(sources, np.int64)


def _fan(
    start: int,
    vertex: int,
    faces: np.ndarray,
    around: set[int],
    partners: dict[tuple[tuple[int, int], int], int],
    pairs: Pairs,
) -> set[int]:
    # faces at a vertex that can be reached from one of them over the edges at that vertex
    fan, todo = {start}, [start]
    while todo:
        face = todo.pop()
        for other in set(faces[face].tolist()) - {vertex}:
            edge = (min(vertex, other), max(vertex, other))
            if edge in pairs:
                neighbours = [partners[edge, face]]
            else:
                neighbours = [f for f in around if other in faces[f] and f != face]
            for neighbour in neighbours:
                if neighbour not in fan:
                    fan.add(neighbour)
                    todo.append(neighbour)
    return fan

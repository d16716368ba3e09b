"""Repairs of triangle meshes: parts, orientation, holes, smoothing, normals.

Every function makes a new `Mesh`; colours and coordinates of vertices travel along, vertex normals
are dropped where geometry changes (`with_normals` makes new ones). Work is done in float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from .structures import Mesh

# Taubin, "A signal processing approach to fair surface design" (SIGGRAPH 1995): a shrinking step
# and a slightly larger growing step; pass band 1/lambda + 1/mu = 0.1, the paper's example value.
TAUBIN_SHRINK = 0.5
TAUBIN_PASS_BAND = 0.1
FACES_PER_BATCH = 1 << 18  # 19 MB of corners


def face_areas(mesh: Mesh) -> Tensor:  # [M]
    """Areas of the faces, world units squared, float64."""
    return _per_face(mesh, lambda a, b, c: 0.5 * torch.linalg.cross(b - a, c - a).norm(dim=-1))


def signed_volume(mesh: Mesh) -> float:
    """Enclosed volume: positive when faces look outward, meaningless on an open mesh."""
    return float(_face_volumes(mesh).sum())


def with_normals(mesh: Mesh) -> Mesh:
    """The mesh with unit vertex normals, area-weighted means of the faces around each vertex."""
    sums = torch.zeros(len(mesh.vertices), 3, dtype=torch.float64, device=mesh.device)
    vectors = _face_vectors(mesh)
    for corner in range(3):
        sums.index_add_(0, mesh.faces[:, corner], vectors)
    # a vertex of no face, or of faces that cancel, still needs a direction
    sums[sums.norm(dim=-1) < 1e-20] = sums.new_tensor([0.0, 1.0, 0.0])
    normals = torch.nn.functional.normalize(sums, dim=-1, eps=1e-30)
    return dataclasses.replace(mesh, normals=normals.to(mesh.vertices.dtype))


def largest_components(mesh: Mesh, min_share: float = 0.01, keep: int | None = None) -> Mesh:
    """Keep the parts whose surface is a fair share of the largest part's.

    Args:
        mesh: Any mesh; faces that share a vertex belong to one part.
        min_share: Smallest area kept, as a share of the largest part's area, in [0, 1].
        keep: At most this many parts, the largest first; None sets no limit.
    """
    if not len(mesh.faces):
        return mesh
    labels = _face_labels(mesh)
    areas = torch.bincount(labels, weights=face_areas(mesh))
    order = areas.argsort(descending=True)
    good = order[areas[order] >= min_share * areas[order[0]]][:keep]
    return select_faces(mesh, torch.isin(labels, good))


def largest_solids(
    mesh: Mesh,
    min_share: float = 0.01,
    keep: int | None = None,
    tick: Callable[[], None] = lambda: None,
) -> Mesh:
    """`drop_inverted_components`, then `largest_components`, finding the parts only once.

    Args:
        mesh: Any mesh with faces oriented outward.
        min_share: As in `largest_components`.
        keep: As in `largest_components`.
        tick: Called between the steps, which take up to a second for a million faces each.
    """
    if not len(mesh.faces):
        return mesh
    labels = _face_labels(mesh)
    tick()
    solid = torch.bincount(labels, weights=_face_volumes(mesh)) > 0
    tick()
    areas = torch.where(solid, torch.bincount(labels, weights=face_areas(mesh)), 0.0)
    tick()
    order = areas.argsort(descending=True)
    order = order[solid[order]]
    good = order[areas[order] >= min_share * areas.max()][:keep]
    return select_faces(mesh, torch.isin(labels, good))


def orient_outward(mesh: Mesh) -> Mesh:
    """Turn whole parts inside out where their enclosed volume is negative.

    Faces must already agree with their neighbours, as those of marching cubes do.
    """
    if not len(mesh.faces):
        return mesh
    labels = _face_labels(mesh)
    inverted = torch.bincount(labels, weights=_face_volumes(mesh)) < 0
    turn = inverted[labels]
    faces = torch.where(turn[:, None], mesh.faces.flip(1), mesh.faces)
    return dataclasses.replace(mesh, faces=faces, normals=None)


def drop_inverted_components(mesh: Mesh) -> Mesh:
    """Remove parts that enclose negative volume: bubbles inside a solid, seen by nobody."""
    if not len(mesh.faces):
        return mesh
    labels = _face_labels(mesh)
    volumes = torch.bincount(labels, weights=_face_volumes(mesh))
    return select_faces(mesh, (volumes > 0)[labels])


def fill_holes(mesh: Mesh, max_edges: int = 64, tick: Callable[[], None] = lambda: None) -> Mesh:
    """Close boundary loops of up to `max_edges` edges, by one triangle or a fan about the middle.

    Vertex colours of a new middle vertex are the mean of its loop. `tick` is called on the way.
    """
    loops = [loop for loop in _boundary_loops(mesh, tick) if 3 <= len(loop) <= max_edges]
    if not loops:
        return mesh
    faces, middles = [], []
    for loop in loops:
        if len(loop) == 3:
            faces.append(loop)
            continue
        middle = len(mesh.vertices) + len(middles)
        middles.append(loop)
        faces.extend([a, b, middle] for a, b in zip(loop, [*loop[1:], loop[0]], strict=True))

    def extended(values: Tensor | None) -> Tensor | None:
        if values is None or not middles:
            return values
        means = [values[torch.tensor(loop, device=values.device)].mean(dim=0) for loop in middles]
        return torch.cat([values, torch.stack(means)])

    return dataclasses.replace(
        mesh,
        vertices=extended(mesh.vertices),
        faces=torch.cat([mesh.faces, mesh.faces.new_tensor(faces)]),
        normals=None,
        uvs=extended(mesh.uvs),
        vertex_colours=extended(mesh.vertex_colours),
    )


def taubin_smooth(
    mesh: Mesh, iterations: int = 10, tick: Callable[[float], None] = lambda share: None
) -> Mesh:
    """Smooth without shrinking: low-pass filter of the vertex positions (Taubin 1995).

    Args:
        mesh: Any mesh.
        iterations: Pairs of a shrinking and a growing step.
        tick: Told the finished share after every step.
    """
    if iterations < 0:
        raise ValueError(f"taubin_smooth: iterations must be at least 0, got {iterations}")
    if not iterations or not len(mesh.faces):
        return mesh
    grow = 1.0 / (TAUBIN_PASS_BAND - 1.0 / TAUBIN_SHRINK)
    average = _neighbour_average(mesh)
    vertices = mesh.vertices.double()
    for number, step in enumerate([TAUBIN_SHRINK, grow] * iterations):
        tick(number / (2 * iterations))
        vertices = vertices + step * (average(vertices) - vertices)
    return dataclasses.replace(mesh, vertices=vertices.to(mesh.vertices.dtype), normals=None)


def spread_colours(mesh: Mesh, known: Tensor) -> Mesh:  # known: [N] bool
    """Give vertices without a colour of their own the colours of the nearest ones along edges."""
    colours = mesh.vertex_colours
    if colours is None or bool(known.all()) or not bool(known.any()):
        return mesh
    average = _neighbour_average(mesh)
    values = torch.where(known[:, None], colours, torch.zeros_like(colours)).double()
    weight = known.double()[:, None]
    for _ in range(len(colours)):
        around_values, around_weight = average(values * weight), average(weight)
        reached = (weight == 0) & (around_weight > 0)
        if not bool(reached.any()):
            break
        values = torch.where(reached, around_values / around_weight.clamp_min(1e-30), values)
        weight = torch.where(reached, torch.ones_like(weight), weight)
    # a part that no view saw has no colours to spread: it takes the mean of all
    mean = colours[known].double().mean(dim=0)
    values = torch.where(weight > 0, values, mean)
    return dataclasses.replace(mesh, vertex_colours=values.to(colours.dtype))


def select_faces(mesh: Mesh, keep: Tensor) -> Mesh:  # keep: [M] bool
    """The chosen faces with only the vertices they use."""
    faces = mesh.faces if bool(keep.all()) else mesh.faces[keep]
    used = torch.zeros(len(mesh.vertices), dtype=torch.bool, device=mesh.device)
    used[faces.reshape(-1)] = True
    if faces is mesh.faces and bool(used.all()):
        return mesh
    compact = used.cumsum(0) - 1  # place of each used vertex among those that stay

    def chosen(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[used]

    return dataclasses.replace(
        mesh,
        vertices=mesh.vertices[used],
        faces=compact[faces],
        normals=chosen(mesh.normals),
        uvs=chosen(mesh.uvs),
        vertex_colours=chosen(mesh.vertex_colours),
    )


def _face_vectors(mesh: Mesh) -> Tensor:  # [M, 3], twice the area along the normal
    a, b, c = mesh.vertices.double()[mesh.faces].unbind(1)
    return torch.linalg.cross(b - a, c - a)


def _face_volumes(mesh: Mesh) -> Tensor:  # [M], tetrahedra with the origin
    return _per_face(mesh, lambda a, b, c: (a * torch.linalg.cross(b - a, c - a)).sum(dim=-1) / 6)


def _per_face(mesh: Mesh, measure: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Tensor:  # [M]
    # a number of each face's corners, float64; in batches, as corners take 72 bytes a face
    results = mesh.vertices.new_zeros(len(mesh.faces), dtype=torch.float64)
    for start in range(0, len(mesh.faces), FACES_PER_BATCH):
        batch = slice(start, start + FACES_PER_BATCH)
        results[batch] = measure(*mesh.vertices[mesh.faces[batch]].double().unbind(1))
    return results


def _face_labels(mesh: Mesh) -> Tensor:  # [M] int64
    faces = mesh.faces.to(torch.int32).cpu().numpy()
    count = len(mesh.vertices)
    rows, columns = faces[:, :2].T.reshape(-1), faces[:, 1:].T.reshape(-1)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return torch.from_numpy(labels[faces[:, 0]].astype(np.int64)).to(mesh.device)


def _boundary_loops(mesh: Mesh, tick: Callable[[], None]) -> list[list[int]]:
    # loops of vertices around holes, in the direction that new faces need
    faces = mesh.faces.cpu().numpy()
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    count = len(mesh.vertices)
    # first those that are not one of just two on their line, a few, and of these the open ones
    lines = edges.min(axis=1) * count + edges.max(axis=1)
    order = np.argsort(lines, kind="stable")
    tick()
    new = np.flatnonzero(np.r_[True, np.diff(lines[order]) != 0])
    two = new[np.diff(np.r_[new, len(lines)]) == 2]
    one, other = order[two], order[two + 1]
    closed = edges[one, 0] == edges[other, 1]
    some = np.ones(len(edges), bool)
    some[one[closed]] = some[other[closed]] = False
    tick()
    edges = edges[some]
    codes, twins = edges[:, 0] * count + edges[:, 1], edges[:, 1] * count + edges[:, 0]
    open_edges = edges[~np.isin(codes, twins)]
    following: dict[int, list[int]] = {}
    for start, end in open_edges.tolist():
        following.setdefault(end, []).append(start)  # against the direction of the existing face
    loops = []
    while following:
        here = next(iter(following))
        path: list[int] = []
        while here in following:
            path.append(here)
            successors = following[here]
            there = successors.pop()
            if not successors:
                del following[here]
            here = there
            if here in path:  # cut off the loop; where holes touch, the rest goes on
                start = path.index(here)
                loops.append(path[start:])
                del path[start:]
    return loops


def _neighbour_average(mesh: Mesh):
    # function that replaces values [N, C] by the mean over the vertices joined by an edge
    faces = mesh.faces
    count = len(mesh.vertices)
    edges = torch.cat([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = torch.cat([edges, edges.flip(1)])
    codes = torch.unique(edges[:, 0] * count + edges[:, 1])  # one number sorts faster than two
    here, there = codes // count, codes % count
    degree = torch.bincount(here, minlength=count).double()[:, None]

    def average(values: Tensor) -> Tensor:
        sums = torch.zeros_like(values).index_add_(0, here, values[there])
        return torch.where(degree > 0, sums / degree.clamp_min(1), values)

    return average

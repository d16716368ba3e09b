"""Parts of a mesh: which way they look, which are large enough, which nobody sees."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from ..mesh_queries import MeshQueries
from .topology import edge_pairs

FLAT = 1e-3  # of area^1.5: an open part that encloses less has no inside; a sphere has 0.094
PROBE = (0.5773, 0.2113, 0.7887)  # direction of the rays that tell inside from outside
MAX_PROBES = 4096  # vertices of a part that are looked at


def part_labels(faces: np.ndarray) -> np.ndarray:  # [M]
    """Number of the part of every face; faces that share a vertex belong to one part."""
    count = int(faces.max(initial=0)) + 1
    rows, columns = faces[:, :2].T.reshape(-1), faces[:, 1:].T.reshape(-1)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(count, count))
    _, labels = connected_components(graph, directed=False)
    return np.unique(labels[faces[:, 0]], return_inverse=True)[1].reshape(-1)


def chosen_parts(
    vertices: np.ndarray, faces: np.ndarray, min_share: float, keep: int | None
) -> np.ndarray:  # [M] bool
    """Faces of parts with at least that share of the largest part's area, at most `keep` parts."""
    labels = part_labels(faces)
    areas = np.bincount(labels, weights=_areas(vertices, faces))
    order = np.argsort(-areas, kind="stable")
    good = order[areas[order] >= min_share * areas[order[0]]][:keep]
    return np.isin(labels, good)


def outward_turns(
    vertices: np.ndarray,
    faces: np.ndarray,
    patch: np.ndarray,  # [M]
    turned: np.ndarray,  # [M] bool
    tick: Callable[[], None] = lambda: None,
) -> np.ndarray:  # [M] bool
    """Faces of patches that look inward when the `turned` faces are turned.

    The volume about the patch's own middle tells; open patches that are all but flat, and so have
    no inside, stay as they are.
    """
    corners = vertices[faces]
    areas = _areas(vertices, faces)
    whole = np.maximum(np.bincount(patch, weights=areas), 1e-300)
    middle = corners.mean(axis=1)
    centre = np.stack(
        [np.bincount(patch, weights=areas * middle[:, axis]) / whole for axis in range(3)], axis=1
    )
    tick()
    a, b, c = (corners - centre[patch][:, None]).swapaxes(0, 1)
    volumes = (a * np.cross(b, c)).sum(axis=1) / 6 * np.where(turned, -1, 1)
    volume = np.bincount(patch, weights=volumes)
    tick()
    closed = _closed(faces, patch)
    return (volume < np.where(closed, 0.0, -FLAT * whole**1.5))[patch]


def hidden_parts(
    vertices: np.ndarray, faces: np.ndarray, tick: Callable[[], None] = lambda: None
) -> np.ndarray:  # [M] bool
    """Faces of closed parts that lie wholly inside another closed part."""
    labels = part_labels(faces)
    hidden = np.zeros(len(faces), bool)
    number = int(labels.max()) + 1
    if number == 1:
        return hidden
    closed = _closed(faces, labels)
    low, high = np.full((number, 3), np.inf), np.full((number, 3), -np.inf)
    for corner in range(3):
        np.minimum.at(low, labels, vertices[faces[:, corner]])
        np.maximum.at(high, labels, vertices[faces[:, corner]])
    for outer in np.nonzero(closed)[0].tolist():
        around = (low > low[outer]).all(axis=1) & (high < high[outer]).all(axis=1)
        inner = np.nonzero(around & closed)[0]
        if not len(inner):
            continue
        own = faces[labels == outer]
        queries = MeshQueries(torch.from_numpy(vertices), torch.from_numpy(own))
        tick()
        for part in inner.tolist():
            of_part = labels == part
            points = vertices[np.unique(faces[of_part])]
            if _inside(points[:: -(-len(points) // MAX_PROBES)], queries, own):
                hidden |= of_part
            tick()
    return hidden


def _inside(points: np.ndarray, queries: MeshQueries, faces: np.ndarray) -> bool:
    # whether all points see the back of the first face in one direction
    rays = torch.tensor(PROBE).expand(len(points), 3).contiguous()
    face = queries.cast(torch.from_numpy(points).float(), rays).face.cpu().numpy()
    if (face < 0).any():
        return False
    a, b, c = queries.vertices.double().cpu().numpy()[faces[face]].swapaxes(0, 1)
    return bool((np.cross(b - a, c - a) @ np.array(PROBE) > 0).all())


def _closed(faces: np.ndarray, labels: np.ndarray) -> np.ndarray:  # [parts] bool
    m, pairs = len(faces), edge_pairs(faces)
    paired = np.zeros(3 * m, bool)
    paired[pairs.first] = paired[pairs.second] = True
    whole = paired.reshape(3, m).all(axis=0)
    return np.bincount(labels, weights=~whole) == 0


def _areas(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:  # [M]
    a, b, c = vertices[faces].swapaxes(0, 1)
    return np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2

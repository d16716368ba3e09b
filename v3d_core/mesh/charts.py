"""Charts: pieces of a surface laid flat, and what they do to lengths and angles."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Floats = NDArray[np.float64]
Ints = NDArray[np.signedinteger]

DEGENERATE_SHARE = 1e-12  # of a mesh's squared size: a face with less area has no direction


@dataclass(frozen=True)
class Charts:
    """A surface cut into pieces that are flat: every corner of a face has a place in its chart.

    A point is a vertex of the mesh in one chart; a vertex on a seam has several points.

    Attributes:
        faces: Points of the faces, in the order of the mesh's faces. [M, 3]
        sources: Vertex of the mesh that each point is. [P]
        places: Coordinates in the chart, in the mesh's unit of length; x right and y down when the
            surface is looked at from outside. [P, 2]
        labels: Chart of each face, from 0 on; -1: in no chart, as it has no area. [M]
    """

    faces: Ints  # [M, 3]
    sources: Ints  # [P]
    places: Floats  # [P, 2]
    labels: Ints  # [M]

    @property
    def count(self) -> int:
        """Number of charts."""
        return int(self.labels.max(initial=-1)) + 1

    def point_labels(self) -> Ints:  # [P]
        """Chart of each point; -1 where no face with a chart uses it."""
        labels = np.full(len(self.sources), -1, np.int64)
        charted = self.labels >= 0
        labels[self.faces[charted]] = self.labels[charted, None]
        return labels


def joined(parts: list[tuple[Ints, Charts]], face_count: int) -> Charts:
    """One set of charts of charts of disjoint subsets of faces.

    Args:
        parts: Indices of faces, and the charts of these faces in that order.
        face_count: Faces of the whole mesh; those in no part get label -1 and corners of point 0,
            for `with_collapsed_faces` to replace.
    """
    faces, labels = np.zeros((face_count, 3), np.int64), np.full(face_count, -1, np.int64)
    points = charts = 0
    for index, part in parts:
        faces[index] = part.faces + points
        labels[index] = np.where(part.labels >= 0, part.labels + charts, -1)
        points, charts = points + len(part.sources), charts + part.count
    return Charts(
        faces,
        np.concatenate([part.sources for _, part in parts] or [np.zeros(0, np.int64)]),
        np.concatenate([part.places for _, part in parts] or [np.zeros((0, 2))]),
        labels,
    )


def welded(positions: Floats, faces: Ints) -> tuple[Floats, Ints]:
    """Positions that differ, in sorted order, and faces of them instead of the given vertices."""
    unique, index = np.unique(positions + 0.0, axis=0, return_inverse=True)  # -0.0 becomes 0.0
    return unique, index.reshape(-1)[faces]


def face_vectors(vertices: Floats, faces: Ints) -> tuple[Floats, Floats]:  # [M, 3], [M]
    """Unit normals (zero without area) and areas of faces."""
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    vectors = np.cross(b - a, c - a)
    doubled = np.linalg.norm(vectors, axis=1)
    return vectors / np.maximum(doubled, 1e-300)[:, None], doubled / 2


def degenerate_faces(vertices: Floats, faces: Ints) -> NDArray[np.bool_]:  # [M]
    """Faces too thin or too small to have a plane."""
    if not len(faces):
        return np.zeros(0, np.bool_)
    size = np.ptp(vertices[faces.reshape(-1)], axis=0).max()
    return face_vectors(vertices, faces)[1] <= DEGENERATE_SHARE * size**2


def metric(vertices: Floats, faces: Ints, places: Floats, corners: Ints) -> Floats:  # [M, 2, 2]
    """Inner products of the gradients of both chart coordinates on each face.

    The identity where a face is laid flat as it is; its determinant is the squared ratio of areas.

    Args:
        vertices: Positions. [N, 3]
        faces: Vertices of faces with area. [M, 3]
        places: Chart coordinates. [P, 2]
        corners: Points of the same faces. [M, 3]
    """
    a, b, c = (vertices[faces[:, corner]] for corner in range(3))
    length = np.linalg.norm(b - a, axis=1)
    along = (b - a) / length[:, None]
    x = ((c - a) * along).sum(axis=1)
    y = np.linalg.norm((c - a) - x[:, None] * along, axis=1)
    first, second = places[corners[:, 1]] - places[corners[:, 0]], places[corners[:, 2]]
    second = second - places[corners[:, 0]]
    slope_x = first / length[:, None]  # derivatives along the first edge and across it
    slope_y = (second - x[:, None] * slope_x) / y[:, None]
    return slope_x[:, :, None] * slope_x[:, None] + slope_y[:, :, None] * slope_y[:, None]


def with_true_scale(charts: Charts, vertices: Floats, faces: Ints) -> Charts:
    """Scale, stretch and where needed mirror each chart, so that lengths are right on average.

    The linear map of a chart is the inverse root of its mean metric: afterwards the mean metric is
    the identity. It undoes the foreshortening of a tilted piece, and cannot make a chart overlap.
    """
    count, charted = charts.count, charts.labels >= 0
    if not count:
        return charts
    labels, areas = charts.labels[charted], face_vectors(vertices, faces[charted])[1]
    tensors = metric(vertices, faces[charted], charts.places, charts.faces[charted])
    mean = np.stack(
        [np.bincount(labels, areas * tensors[:, i, j], count) for i, j in ((0, 0), (0, 1), (1, 1))],
        axis=1,
    )
    mean /= np.maximum(np.bincount(labels, areas, count), 1e-300)[:, None]
    values, axes = np.linalg.eigh(mean[:, [0, 1, 1, 2]].reshape(-1, 2, 2))
    values = np.maximum(values, 1e-12 * np.maximum(values[:, 1:], 1e-300))
    root = (axes / np.sqrt(values)[:, None, :]) @ axes.transpose(0, 2, 1)
    # y runs down, so a face seen from outside has negative area; a mirrored chart is turned over
    flat = signed_areas(charts.places, charts.faces[charted])
    root[np.bincount(labels, flat, count) > 0, 0] *= -1
    of_points = charts.point_labels()
    used = of_points >= 0
    places = charts.places.copy()
    places[used] = np.einsum("pij,pj->pi", root[of_points[used]], places[used])
    return Charts(charts.faces, charts.sources, places, charts.labels)


def signed_areas(places: Floats, corners: Ints) -> Floats:  # [M]
    """Areas of faces in their charts: negative where the surface is seen from outside."""
    a, b, c = (places[corners[:, corner]] for corner in range(3))
    first, second = b - a, c - a
    return 0.5 * (first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0])


def connected_labels(corners: Ints, points: int) -> Ints:  # [M]
    """Number of the connected piece that each face belongs to; faces are joined by points."""
    if not len(corners):
        return np.zeros(0, np.int64)
    rows, columns = corners[:, :2].T.reshape(-1), corners[:, 1:].T.reshape(-1)
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(points, points))
    _, of_points = connected_components(graph, directed=False)
    return np.unique(of_points[corners[:, 0]], return_inverse=True)[1].astype(np.int64).reshape(-1)


def with_collapsed_faces(charts: Charts, faces: Ints, vertex_count: int) -> Charts:
    """Give the corners of faces without a chart new points, all at the place of one neighbour.

    Such a face covers no texel. Its place is that of any point of one of its vertices; a face with
    no neighbour gets a point of its own, and with it a chart's worth of room.
    """
    loose = np.flatnonzero(charts.labels < 0)
    if not len(loose):
        return charts
    used = charts.point_labels() >= 0
    point_of = np.full(vertex_count, -1, np.int64)
    point_of[charts.sources[used]] = np.flatnonzero(used)
    candidates = point_of[faces[loose]]
    anchor = candidates.max(axis=1)
    places = np.concatenate([charts.places, np.zeros((3 * len(loose), 2))])
    corners = len(charts.sources) + np.arange(3 * len(loose), dtype=np.int64).reshape(-1, 3)
    anchored = anchor >= 0
    places[corners[anchored]] = charts.places[anchor[anchored], None]
    labels = charts.labels.copy()
    of_points = charts.point_labels()
    labels[loose[anchored]] = of_points[anchor[anchored]]
    alone = loose[~anchored]
    labels[alone] = charts.count + np.arange(len(alone))
    new_faces = charts.faces.copy()
    new_faces[loose] = corners
    sources = np.concatenate([charts.sources, faces[loose].reshape(-1)])
    return Charts(new_faces, sources, places, labels)

"""Charts of our own: flat enough pieces, seen straight on. Needs nothing but numpy.

Faces are merged pair by pair, as in Garland, Willmott and Heckbert, "Hierarchical face clustering
on polygonal surfaces" (I3D 2001): every cluster picks its cheapest neighbour, and those that pick
each other merge, all at once. The cost is how much the merged piece bends and how ragged it is; no
face may lean more than a bound against the plane of its piece. So the projection onto that plane
turns no face over, and only a piece that winds over itself can overlap (`chart_overlaps`).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .charts import Charts, Floats, Ints, face_vectors

RAGGED_WEIGHT = 0.02  # of perimeter^2 / (4 pi area), 1 for a disc, against 1 - mean cosine; trial


def grown_charts(
    vertices: Floats,  # [N, 3]
    faces: Ints,  # [M, 3]
    max_tilt_deg: float,
    tick: Callable[[float, str], None],
) -> Charts:
    """Cut a surface into pieces and project each onto its mean plane.

    Args:
        vertices: Positions, all different. [N, 3]
        faces: Vertices of faces with area. [M, 3]
        max_tilt_deg: Largest angle between a face's normal and that of its piece, below 90.
        tick: Called between rounds with the share that is done and a line for people.
    """
    normals, areas = face_vectors(vertices, faces)
    tick(0.0, "cutting")
    labels = _merged(vertices, faces, normals, areas, np.cos(np.radians(max_tilt_deg)), tick)
    return projected_charts(vertices, faces, labels)


def projected_charts(vertices: Floats, faces: Ints, labels: Ints) -> Charts:
    """Charts of given pieces, each projected onto its mean plane.

    Args:
        vertices: Positions. [N, 3]
        faces: Vertices of faces with area. [M, 3]
        labels: Piece of each face, 0 on. [M]
    """
    normals, areas = face_vectors(vertices, faces)
    count = int(labels.max(initial=-1)) + 1
    axes = _units(_sums(labels, normals * areas[:, None], count))
    helper = np.eye(3)[np.abs(axes).argmin(axis=1)] if count else np.zeros((0, 3))
    right = _units(np.cross(helper, axes))
    down = np.cross(right, axes)
    codes = labels[:, None] * len(vertices) + faces
    points, corners = np.unique(codes, return_inverse=True)
    of_point, sources = points // max(len(vertices), 1), points % max(len(vertices), 1)
    x = (vertices[sources] * right[of_point]).sum(axis=1)
    y = (vertices[sources] * down[of_point]).sum(axis=1)
    return Charts(corners.reshape(-1, 3), sources, np.stack([x, y], axis=1), labels)


def face_pairs(vertices: Floats, faces: Ints) -> tuple[Ints, Floats, Floats]:
    """Neighbours across edges that exactly two faces share, and that both look at alike.

    Returns:
        Pairs of faces; the length of their edge; the length of each face's outline. [E, 2] [E] [M]
    """
    starts, ends = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
    lengths = np.linalg.norm(vertices[faces] - vertices[np.roll(faces, -1, axis=1)], axis=2)
    low, high = np.minimum(starts, ends), np.maximum(starts, ends)
    codes = low * len(vertices) + high
    order = np.argsort(codes, kind="stable")
    sorted_codes = codes[order]
    first = np.flatnonzero(np.r_[True, sorted_codes[1:] != sorted_codes[:-1]])
    two = first[np.diff(np.r_[first, len(order)]) == 2]
    here, there = order[two], order[two + 1]
    opposite = (starts[here] == ends[there]) & (here // 3 != there // 3)
    here, there = here[opposite], there[opposite]
    return np.stack([here // 3, there // 3], axis=1), lengths.reshape(-1)[here], lengths.sum(axis=1)


def _merged(
    vertices: Floats,
    faces: Ints,
    normals: Floats,
    areas: Floats,
    least_cosine: float,
    tick: Callable[[float, str], None],
) -> Ints:  # [M] piece of each face
    pairs, shared, outline = face_pairs(vertices, faces)
    tick(0.0, "cutting")
    count = len(faces)
    piece = np.arange(count)
    vector, area, outline = normals * areas[:, None], areas.copy(), outline.copy()
    refused = np.zeros(len(pairs), np.bool_)
    changed = np.zeros(count, np.bool_)
    while len(pairs):
        pieces = len(np.unique(piece))
        done = np.log(count / pieces) / np.log(count + 1)
        tick(min(float(done) * 1.3, 1.0), f"cutting: {pieces} pieces of {count} faces")
        left, right = pairs.T
        bend = 1 - np.linalg.norm(vector[left] + vector[right], axis=1) / (area[left] + area[right])
        rim = outline[left] + outline[right] - 2 * shared
        ragged = rim**2 / (4 * np.pi * (area[left] + area[right]))
        cost = np.where(refused, np.inf, bend + RAGGED_WEIGHT * ragged)
        chosen = _mutual_choices(pairs, cost, count)
        if not len(chosen):
            break
        # the cone of each pair, face by face
        partner = np.full(count, -1)
        partner[left[chosen]], partner[right[chosen]] = chosen, chosen
        of_face = partner[piece]
        touched = np.flatnonzero(of_face >= 0)
        axis = np.zeros((len(pairs), 3))
        axis[chosen] = _units(vector[left[chosen]] + vector[right[chosen]])
        cosines = np.full(len(pairs), np.inf)
        tilt = (normals[touched] * axis[of_face[touched]]).sum(axis=1)
        np.minimum.at(cosines, of_face[touched], tilt)
        refused[chosen] = cosines[chosen] < least_cosine
        accepted = chosen[~refused[chosen]]
        keep, gone = left[accepted], right[accepted]
        vector[keep] += vector[gone]
        area[keep] += area[gone]
        outline[keep] = rim[accepted]
        target = np.arange(count)
        target[gone] = keep
        piece = target[piece]
        changed[:] = False
        changed[keep] = True
        pairs, shared, refused = _renamed(pairs, shared, refused, target, changed)
    return np.unique(piece, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _mutual_choices(pairs: Ints, cost: Floats, count: int) -> Ints:
    # indices of pairs that are the cheapest of both their pieces; equal costs go by index
    rank = np.empty(len(pairs), np.int64)
    rank[np.argsort(cost, kind="stable")] = np.arange(len(pairs))
    best = np.full(count, len(pairs))
    np.minimum.at(best, pairs[:, 0], rank)
    np.minimum.at(best, pairs[:, 1], rank)
    mutual = (best[pairs[:, 0]] == rank) & (best[pairs[:, 1]] == rank) & np.isfinite(cost)
    return np.flatnonzero(mutual)


def _renamed(pairs, shared, refused, target, changed):
    # pairs after merging: without those inside a piece, and those between the same two as one
    count = len(target)
    ends = np.sort(target[pairs], axis=1)
    outer = ends[:, 0] != ends[:, 1]
    ends, shared, refused = ends[outer], shared[outer], refused[outer]
    codes, index = np.unique(ends[:, 0] * count + ends[:, 1], return_inverse=True)
    merged = np.stack([codes // count, codes % count], axis=1)
    still = np.bincount(index, refused, len(codes)) > 0
    still &= ~changed[merged].any(axis=1)  # a piece that grew deserves another try
    return merged, np.bincount(index, shared, len(codes)), still


def _sums(labels: Ints, values: Floats, count: int) -> Floats:
    sums = np.zeros((count, values.shape[1]))
    np.add.at(sums, labels, values)
    return sums


def _units(vectors: Floats) -> Floats:
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)

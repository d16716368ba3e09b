"""Faces that add nothing to a surface: without area, or a second time in the same place."""

from __future__ import annotations

import numpy as np

from .parts import part_labels
from .topology import Pairs, edge_pairs, sides

LEAST_HEIGHT = 1e-5  # of a face, relative to its longest side; float32 positions give no less
MAX_FLIP_ROUNDS = 8  # of turning edges; each turns all that share no face


def heights(vertices: np.ndarray, faces: np.ndarray) -> np.ndarray:  # [M]
    """Smallest height of each face relative to its longest side; 0 where corners coincide."""
    a, b, c = vertices[faces].swapaxes(0, 1)
    longest = np.maximum.reduce([np.linalg.norm(side, axis=1) for side in (b - a, c - b, a - c)])
    double_area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    return double_area / np.maximum(longest, 1e-300) ** 2


def without_short_sides(
    vertices: np.ndarray, faces: np.ndarray, length: float
) -> np.ndarray:  # [N], the vertex each becomes
    """Vertices joined over sides shorter than `length`, world units; the lowest number stays.

    Faces at such a side collapse. What closed a mesh closes it still, but where the surface is
    pinched by it, faces come to lie back to back or edges have four faces.
    """
    target = np.arange(len(vertices))
    start, end = sides(faces)
    short = np.linalg.norm(vertices[start] - vertices[end], axis=1) < length
    for a, b in np.unique(np.sort(np.c_[start, end][short], axis=1), axis=0):
        while target[a] != a:
            a = target[a]
        while target[b] != b:
            b = target[b]
        if a != b:
            target[max(a, b)] = min(a, b)
    while True:
        again = target[target]
        if np.array_equal(again, target):
            return target
        target = again


def collapsed(faces: np.ndarray) -> np.ndarray:  # [M] bool
    """Faces with a corner twice."""
    a, b, c = faces.T
    return (a == b) | (b == c) | (c == a)


def repeated(faces: np.ndarray) -> np.ndarray:  # [M] bool
    """Faces to drop so that no three vertices carry more than one face.

    Of faces that look the same way the first stays. Two back to back enclose nothing, and both go;
    but of a part of such faces alone, a leaf modelled from both sides, one side stays.
    """
    ordered = np.sort(faces, axis=1)
    count = int(faces.max(initial=0)) + 1
    low = ordered[:, 1] * count + ordered[:, 2]
    order = np.lexsort((low, ordered[:, 0]))
    same = (np.diff(ordered[order, 0]) == 0) & (np.diff(low[order]) == 0)
    if not same.any():
        return np.zeros(len(faces), bool)
    group = np.empty(len(faces), np.int64)
    group[order] = np.r_[0, np.cumsum(~same)]
    sizes = np.bincount(group)
    forward = np.zeros(len(faces), bool)  # even permutations of the sorted corners
    for shift in range(3):
        forward |= (np.roll(faces, shift, axis=1) == ordered).all(axis=1)
    balance = np.bincount(group, weights=np.where(forward, 1, -1))
    fin = (sizes[group] > 1) & (balance[group] == 0)
    part = part_labels(faces)
    leaf = np.bincount(part, weights=~fin)[part] == 0
    # of those that stay: the first that looks as most of its group do
    right = np.where(balance[group] == 0, True, forward == (balance[group] > 0))
    candidates = np.nonzero(right)[0]
    _, first = np.unique(group[candidates], return_index=True)
    keep = np.zeros(len(faces), bool)
    keep[candidates[first]] = True
    return ~keep | (fin & ~leaf)


def turn_edges(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, int]:
    """Give faces whose corners lie on one line an area, by turning the edge opposite the middle one.

    Turning keeps a surface closed, which dropping the face would not: its middle corner lies on its
    neighbour's side.

    Returns:
        New faces [M, 3], and how many of the faces without area got one.
    """
    before = int((heights(vertices, faces) < LEAST_HEIGHT).sum())
    faces = faces.copy()
    for _ in range(MAX_FLIP_ROUNDS):
        (flat,) = np.nonzero(heights(vertices, faces) < LEAST_HEIGHT)
        if not len(flat) or not _turn_once(vertices, faces, flat, edge_pairs(faces)):
            break
    return faces, before - int((heights(vertices, faces) < LEAST_HEIGHT).sum())


def _turn_once(vertices: np.ndarray, faces: np.ndarray, flat: np.ndarray, pairs: Pairs) -> bool:
    # turns the longest side of some flat faces in place; whether there was one to turn
    m = len(faces)
    partner = np.full(3 * m, -1)
    partner[pairs.first[pairs.agree]] = pairs.second[pairs.agree]
    partner[pairs.second[pairs.agree]] = pairs.first[pairs.agree]
    corners = vertices[faces[flat]]
    lengths = np.linalg.norm(corners - np.roll(corners, -1, axis=1), axis=2)
    start, end = sides(faces)
    count = len(vertices)
    codes = np.sort(np.minimum(start, end) * count + np.maximum(start, end))
    taken: set[int] = set()
    made: set[int] = set()
    for face, longest in zip(flat.tolist(), lengths.argmax(axis=1).tolist(), strict=True):
        other_side = int(partner[longest * m + face])
        other = other_side % m
        if other_side < 0 or {face, other} & taken:
            continue
        a, b = int(faces[face, longest]), int(faces[face, (longest + 1) % 3])
        middle = int(faces[face, (longest + 2) % 3])
        across = int(faces[other, (other_side // m + 2) % 3])
        code = min(middle, across) * count + max(middle, across)
        there = codes[min(int(np.searchsorted(codes, code)), len(codes) - 1)] == code
        if middle == across or there or code in made:
            continue
        halves = np.array([[a, across, middle], [across, b, middle]])
        if heights(vertices, halves).min() < LEAST_HEIGHT:
            continue
        faces[face], faces[other] = halves
        made.add(code)
        taken |= {face, other}
    return bool(taken)

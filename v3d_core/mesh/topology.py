"""How the faces of a mesh hang together: edges, borders, orientation, fans about vertices.

Arrays of faces are [M, 3] int64. A side is one edge of one face: side s of face f joins its corners
s and s + 1, and has the number s * M + f.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import KDTree


class EdgeCounts(NamedTuple):
    """Edges by the faces on them: `open` has one, `shared` more than two, `twisted` the same turn."""

    open: int
    shared: int
    twisted: int

    @property
    def watertight(self) -> bool:
        """Whether every edge has exactly two faces, which run along it in opposite directions."""
        return not any(self)


class Pairs(NamedTuple):
    """The edges of exactly two faces.

    Attributes:
        first: Side on the one face. [E]
        second: Side on the other one. [E]
        agree: Whether both faces look the same way. [E] bool
    """

    first: np.ndarray
    second: np.ndarray
    agree: np.ndarray


def count_edges(faces: np.ndarray) -> EdgeCounts:
    """Edges that keep a mesh from being watertight."""
    start, end = sides(faces)
    count = int(faces.max(initial=0)) + 1
    codes = np.minimum(start, end) * count + np.maximum(start, end)
    codes = np.sort(codes * 2 + (start < end))
    edges, turns = codes >> 1, codes & 1
    new = np.r_[True, edges[1:] != edges[:-1]]
    places = np.nonzero(new)[0]
    uses = np.diff(np.r_[places, len(edges)])
    both = places[uses == 2]
    return EdgeCounts(
        open=int((uses == 1).sum()),
        shared=int((uses > 2).sum()),
        twisted=int((turns[both] == turns[both + 1]).sum()),
    )


def sides(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:  # [3M], [3M]
    """First and last vertex of every side."""
    return faces.T.reshape(-1), faces[:, [1, 2, 0]].T.reshape(-1)


def edge_pairs(faces: np.ndarray) -> Pairs:
    """Every edge of exactly two faces, with the sides on it."""
    start, end = sides(faces)
    count = int(faces.max(initial=0)) + 1
    codes = np.minimum(start, end) * count + np.maximum(start, end)
    order = np.argsort(codes, kind="stable")
    codes = codes[order]
    new = np.nonzero(np.r_[True, codes[1:] != codes[:-1]])[0]
    twice = new[np.diff(np.r_[new, len(codes)]) == 2]
    first, second = order[twice], order[twice + 1]
    return Pairs(first, second, start[first] != start[second])


def border_vertices(faces: np.ndarray, count: int) -> np.ndarray:  # [N] bool
    """Vertices at the ends of edges that have not exactly two faces."""
    start, end = sides(faces)
    inner = np.zeros(len(start), bool)
    pairs = edge_pairs(faces)
    inner[pairs.first] = inner[pairs.second] = True
    border = np.zeros(count, bool)
    border[start[~inner]] = border[end[~inner]] = True
    return border


def weld_borders(
    vertices: np.ndarray,
    faces: np.ndarray,
    distance: float,
    tick: Callable[[], None] = lambda: None,
) -> np.ndarray:  # [N]
    """The vertex that each vertex becomes when borders that lie on each other are joined.

    Only vertices at open edges are joined, so closed parts that touch stay apart. Sides of a face
    longer than `distance` never vanish unless its ends are joined through others.

    Args:
        vertices: Positions. [N, 3]
        faces: Vertex indices. [M, 3]
        distance: Largest distance between vertices that become one, world units.
        tick: Called between the steps.
    """
    target = np.arange(len(vertices))
    (places,) = np.nonzero(border_vertices(faces, len(vertices)))
    if not len(places):
        return target
    tick()
    tree = KDTree(vertices[places])
    tick()
    near = tree.query_pairs(distance, output_type="ndarray")
    tick()
    ones = np.ones(len(near), np.int8)
    graph = coo_matrix((ones, (near[:, 0], near[:, 1])), shape=(len(places), len(places)))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    target[places] = places[first[labels]]
    return target


def patches(faces: np.ndarray, pairs: Pairs) -> np.ndarray:  # [M]
    """Number of the patch of every face; faces of one patch are joined over edges of two faces."""
    m = len(faces)
    links = (np.ones(len(pairs.first), np.int8), (pairs.first % m, pairs.second % m))
    return connected_components(coo_matrix(links, shape=(m, m)), directed=False)[1]


def agreeing_turns(faces: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, int]:  # [M] bool
    """Faces to turn so that all faces of a patch look the same way, the fewer ones of each patch.

    Returns:
        Which faces to turn, and the number of faces of one-sided patches (Moebius strips), where no
        choice is right.
    """
    m = len(faces)
    if bool(pairs.agree.all()):
        return np.zeros(m, bool), 0
    # two nodes for each face, as it is and turned: a pair that disagrees links unlike ones
    a, b, cross = pairs.first % m, pairs.second % m, ~pairs.agree * m
    rows, columns = np.r_[a, a + m], np.r_[b + cross, (b + cross + m) % (2 * m)]
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(2 * m, 2 * m))
    _, labels = connected_components(graph, directed=False)
    straight, turned = labels[:m], labels[m:]
    patch, turn = np.minimum(straight, turned), straight > turned
    share = np.bincount(patch, weights=turn) / np.maximum(np.bincount(patch), 1)
    return turn ^ (share > 0.5)[patch], int((straight == turned).sum())


def separate_fans(faces: np.ndarray, pairs: Pairs) -> tuple[np.ndarray, np.ndarray]:
    """Give each fan of faces about a vertex a vertex of its own.

    Corners are of one fan when a walk over edges of two faces leads from one to the other. So
    patches that only touch, at a vertex or along an edge of more than two faces, come apart.

    Returns:
        New faces [M, 3], and the old number of every new vertex [N'].
    """
    m = len(faces)
    corners = faces.T.reshape(-1)

    def after(side: np.ndarray) -> np.ndarray:
        return (side + m) % (3 * m)

    # the corner at the start of a side has its number, that at the end the next side's
    ends = np.where(pairs.agree, after(pairs.second), pairs.second)
    starts = np.where(pairs.agree, pairs.second, after(pairs.second))
    rows, columns = np.r_[pairs.first, after(pairs.first)], np.r_[ends, starts]
    graph = coo_matrix((np.ones(len(rows), np.int8), (rows, columns)), shape=(3 * m, 3 * m))
    _, labels = connected_components(graph, directed=False)
    _, first = np.unique(labels, return_index=True)
    # vertices keep their order, so that a mesh without such places stays as it is
    order = np.lexsort((first, corners[first]))
    number = np.empty(len(order), np.int64)
    number[order] = np.arange(len(order))
    return number[labels].reshape(3, m).T.copy(), corners[first[order]]

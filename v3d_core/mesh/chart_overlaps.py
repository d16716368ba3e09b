"""Which faces cover which cells of a grid, and faces of a chart that lie on top of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from .charts import Charts, Floats, Ints

CELLS_PER_BATCH = 1 << 20  # cells at a time, some 50 MB


def covered_spans(triangles: Floats) -> tuple[Ints, Ints, Ints, Ints]:
    """Runs of cells of the unit grid whose middles lie inside a triangle, row by row.

    Where triangles share an edge, each middle belongs to exactly one of them: edges are half open,
    and both neighbours compute them from the same end.

    Args:
        triangles: Corners, in cells. [M, 3, 2]

    Returns:
        Triangle, row, first column and one past the last column of each run. [S] each
    """
    low = np.ceil(triangles[:, :, 1].min(axis=1) - 0.5).astype(np.int64)
    rows = np.ceil(triangles[:, :, 1].max(axis=1) - 0.5).astype(np.int64) - low
    which = np.repeat(np.arange(len(triangles)), rows)
    row = np.arange(len(which)) - np.repeat(np.cumsum(rows) - rows, rows) + low[which]
    middle = row + 0.5
    left, right = np.full(len(which), np.inf), np.full(len(which), -np.inf)
    for corner in range(3):
        here, there = triangles[:, corner], triangles[:, (corner + 1) % 3]
        down = (here[:, 1] < there[:, 1])[:, None]
        upper, lower = np.where(down, here, there)[which], np.where(down, there, here)[which]
        crossed = (upper[:, 1] <= middle) & (middle < lower[:, 1])
        run = np.where(crossed, lower[:, 1] - upper[:, 1], 1.0)
        x = upper[:, 0] + (lower[:, 0] - upper[:, 0]) * ((middle - upper[:, 1]) / run)
        left = np.where(crossed, np.minimum(left, x), left)
        right = np.where(crossed, np.maximum(right, x), right)
    full = right > left
    which, row, left, right = which[full], row[full], left[full], right[full]
    first = np.ceil(left - 0.5).astype(np.int64)
    last = np.ceil(right - 0.5).astype(np.int64)
    some = last > first
    return which[some], row[some], first[some], last[some]


def covered_cells(spans: tuple[Ints, Ints, Ints, Ints]) -> Iterator[tuple[Ints, Ints, Ints]]:
    """Batches of the cells of `covered_spans`: triangle, row and column. [B] each"""
    which, row, first, last = spans
    sizes = last - first
    total = np.cumsum(sizes)
    start = 0
    while start < len(which):
        done = total[start] - sizes[start]
        stop = max(int(np.searchsorted(total, done + CELLS_PER_BATCH)), start + 1)
        batch = slice(start, stop)
        index = np.repeat(np.arange(start, stop), sizes[batch])
        step = np.arange(len(index)) - np.repeat(total[batch] - sizes[batch] - done, sizes[batch])
        yield which[index], row[index], first[index] + step
        start = stop


def faces_on_top(charts: Charts, cell: float, tick: Callable[[], None]) -> NDArray[np.bool_]:  # [M]
    """Faces that cover a cell which another face of the same chart covers already.

    Args:
        charts: Charts at their true scale.
        cell: Size of the cells that are looked at, in the mesh's unit of length; overlaps thinner
            than that may be missed.
        tick: Called several times a second.
    """
    on_top = np.zeros(len(charts.faces), np.bool_)
    count = charts.count
    charted = np.flatnonzero(charts.labels >= 0)
    if not count:
        return on_top
    labels = charts.labels[charted]
    triangles = charts.places[charts.faces[charted]] / cell
    low, high = np.full((count, 2), np.inf), np.full((count, 2), -np.inf)
    np.minimum.at(low, labels, triangles.min(axis=1))
    np.maximum.at(high, labels, triangles.max(axis=1))
    low = np.floor(low)
    triangles -= low[labels][:, None]
    size = (np.ceil(high) - low).astype(np.int64) + 1
    room = size.prod(axis=1)
    offsets = np.cumsum(room) - room
    tick()
    owners = np.full(int(room.sum()), -1, np.int32)  # of each cell of each chart's own box
    for which, row, column in covered_cells(covered_spans(triangles)):
        tick()
        chart = labels[which]
        key = offsets[chart] + row * size[chart, 0] + column
        # where several faces meet, the one that was written stays below and the others are on top
        free = owners[key] < 0
        owners[key[free]] = which[free]
        on_top[charted[which[owners[key] != which]]] = True
    return on_top

"""Where charts lie on top of themselves: by the cells that faces cover, and by rims that cross."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from .charts import Charts, Floats, Ints, signed_areas

CELLS_PER_BATCH = 1 << 20  # cells at a time, some 50 MB
FULL_TURN_SLACK = 1e-6  # radians: rounding


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
    spans = covered_spans(triangles)
    for which, row, column in covered_cells(spans):
        tick()
        chart = labels[which]
        key = offsets[chart] + row * size[chart, 0] + column
        # where several faces meet, the one that was written stays below and the others are on top
        free = owners[key] < 0
        owners[key[free]] = which[free]
        on_top[charted[which[owners[key] != which]]] = True
    return on_top


def touched_columns(start: Floats, end: Floats) -> tuple[Ints, Ints, Ints, Ints]:
    """Cells of the unit grid that line segments touch, column by column.

    Args:
        start: First ends, in cells. [E, 2]
        end: Second ends. [E, 2]

    Returns:
        Segment, column, first row and one past the last row of each run; there is one row at
        least. [S] each
    """
    ahead = start[:, :1] <= end[:, :1]
    start, end = np.where(ahead, start, end), np.where(ahead, end, start)
    first = np.floor(start[:, 0]).astype(np.int64)
    columns = np.maximum(np.ceil(end[:, 0]).astype(np.int64) - first, 1)
    which = np.repeat(np.arange(len(start)), columns)
    column = np.arange(len(which)) - np.repeat(np.cumsum(columns) - columns, columns) + first[which]
    run = np.maximum(end[which, 0] - start[which, 0], 1e-300)
    rise = end[which, 1] - start[which, 1]
    left = start[which, 1] + rise * np.clip((column - start[which, 0]) / run, 0, 1)
    right = start[which, 1] + rise * np.clip((column + 1 - start[which, 0]) / run, 0, 1)
    upright = columns[which] == 1  # also those without any run
    left = np.where(upright, start[which, 1], left)
    right = np.where(upright, end[which, 1], right)
    low = np.floor(np.minimum(left, right)).astype(np.int64)
    high = np.ceil(np.maximum(left, right)).astype(np.int64)
    return which, column, low, np.maximum(high, low + 1)


def faces_at_crossings(charts: Charts, tick: Callable[[], None]) -> NDArray[np.bool_]:  # [M]
    """Faces at edges that cross a rim: the smaller face of the two at each crossing.

    A connected chart is injective if no face is turned over, no point is crowded and nothing
    crosses its rim: together these find overlaps of any thinness.

    Args:
        charts: Charts at their true scale.
        tick: Called several times a second.
    """
    found = np.zeros(len(charts.faces), np.bool_)
    ends, owner, rim = _edges(charts)
    tick()
    # inner edges too: at a point where the chart touches itself, its rim may turn without crossing
    if not len(ends):
        return found
    start, end = charts.places[ends[:, 0]], charts.places[ends[:, 1]]
    size = max(float(np.linalg.norm(end - start, axis=1).mean()), 1e-300)
    which, column, low, high = touched_columns(start / size, end / size)
    rows = high - low
    index = np.repeat(np.arange(len(which)), rows)
    row = np.arange(len(index)) - np.repeat(np.cumsum(rows) - rows, rows) + low[index]
    which, column = which[index], column[index]
    tick()
    order = np.lexsort((row, column, charts.labels[owner[which]]))
    tick()
    which, column, row = which[order], column[order], row[order]
    label = charts.labels[owner[which]]
    area = np.abs(signed_areas(charts.places, charts.faces))
    here, step = np.arange(len(which)), 0
    while len(here):  # pairs of segments in one cell, by their distance in the list
        tick()
        step += 1
        here = here[here + step < len(which)]
        there = here + step
        same = (label[here] == label[there]) & (column[here] == column[there])
        same &= row[here] == row[there]
        here, there = here[same], there[same]
        a, b = which[here], which[there]
        at_rim = rim[a] | rim[b]
        a, b = a[at_rim], b[at_rim]
        crossing = _opposite(start[a], end[a], start[b], end[b])
        crossing &= _opposite(start[b], end[b], start[a], end[a])
        one, other = owner[a[crossing]], owner[b[crossing]]
        found[np.where(area[one] <= area[other], one, other)] = True
    return found


def faces_at_crowded_points(charts: Charts) -> NDArray[np.bool_]:  # [M]
    """Faces at points whose corners take more than a full turn: the smallest face of each.

    Args:
        charts: Charts at their true scale.
    """
    found = np.zeros(len(charts.faces), np.bool_)
    charted = np.flatnonzero(charts.labels >= 0)
    corners = charts.faces[charted]
    turns = np.zeros(len(charts.sources))
    for corner in range(3):
        here, after, before = (corners[:, (corner + k) % 3] for k in range(3))
        one, other = charts.places[after] - charts.places[here], charts.places[before]
        other = other - charts.places[here]
        sine = np.abs(one[:, 0] * other[:, 1] - one[:, 1] * other[:, 0])
        np.add.at(turns, here, np.arctan2(sine, (one * other).sum(axis=1)))
    crowded = turns > 2 * np.pi + FULL_TURN_SLACK
    suspects = charted[crowded[corners].any(axis=1)]
    suspects = suspects[np.argsort(np.abs(signed_areas(charts.places, charts.faces[suspects])))]
    taken = np.zeros(len(charts.sources), np.bool_)
    for face in suspects.tolist():  # there are few
        points = charts.faces[face]
        if (crowded[points] & ~taken[points]).any():
            taken[points] = True
            found[face] = True
    return found


def _edges(charts: Charts) -> tuple[Ints, Ints, NDArray[np.bool_]]:
    # every edge once: its points, a face that has it, and whether it has only this one
    charted = np.flatnonzero(charts.labels >= 0)
    corners = charts.faces[charted]
    ends = np.stack([corners, np.roll(corners, -1, axis=1)], axis=2).reshape(-1, 2)
    codes = ends.min(axis=1) * len(charts.sources) + ends.max(axis=1)
    _, first, times = np.unique(codes, return_index=True, return_counts=True)
    return ends[first], np.repeat(charted, 3)[first], times == 1


def _opposite(a: Floats, b: Floats, c: Floats, d: Floats) -> NDArray[np.bool_]:
    # whether c and d lie on different sides of the line from a to b, neither of them on it
    along, first, second = b - a, c - a, d - a
    left = along[:, 0] * first[:, 1] - along[:, 1] * first[:, 0]
    right = along[:, 0] * second[:, 1] - along[:, 1] * second[:, 0]
    return left * right < 0

"""Packing of charts into a square, as in a game of falling blocks.

Levy et al., "Least Squares Conformal Maps for Automatic Texture Atlas Generation" (SIGGRAPH 2002),
section 4: charts fall on a horizon, largest first, each where it wastes least. Each chart is its
columns' lowest and highest cell, so charts may interlock but never lie in each other's holes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from .chart_overlaps import touched_columns
from .charts import Floats, Ints

CELLS = 1024  # finest grid for places of charts, along a side; larger textures snap to it
TURNS = 16  # directions tried for a chart's smallest box: of a right angle, then around the best
FIRST_FILL = 0.95  # share of the square that the charts' boxes are first hoped to cover
MAX_PASSES = 12  # passes with smaller and smaller charts until all of them fit
LOW_WEIGHT = 1.0  # how much a row higher up counts against a row of waste below; by trial
SMALL_CHART = 64  # cells; smaller charts are not tried upside down
CLOSE = 1.01  # scales that fit and that do not, so near to each other, end the search
GIVE_UP = 2  # heights of the square after which a pass is hopeless
ENOUGH = 0.985  # a pass that uses this much of the height is good enough to stop


@dataclass(frozen=True)
class Outline:
    """Cells that one chart takes, by column, from the lower edge of its box."""

    low: Ints  # [w] first cell of each column
    high: Ints  # [w] one past the last cell

    def upside_down(self) -> Outline:
        """The outline after half a turn within the same box."""
        height = self.high.max()
        return Outline(height - self.high[::-1], height - self.low[::-1])


def pack(
    places: Floats,  # [P, 2]
    labels: Ints,  # [P]
    edges: Ints,  # [E, 2]
    resolution: int,
    padding: int,
    tick: Callable[[str], None],
) -> Floats:  # [P, 2]
    """Turn, scale alike and place charts so that all of them fit into a square texture.

    Args:
        places: Coordinates of points in their charts. [P, 2]
        labels: Chart of each point, 0 on; a point in no chart (-1) goes to the corner. [P]
        edges: Edges of the faces, as points: what has to stay clear of other charts. [E, 2]
        resolution: Texels along the texture's sides.
        padding: Free texels between any two charts; half as many at the texture's rim.
        tick: Called several times a second, with a line for people.

    Returns:
        Coordinates in texels, in [0, resolution]. [P, 2]

    Raises:
        ValueError: There are more charts than texels leave room for.
    """
    count = int(labels.max(initial=-1)) + 1
    result = np.zeros_like(places)
    if not count:
        return result
    cell = max(1, -(-resolution // CELLS))
    cells, gap = resolution // cell, -(-padding // cell)
    rim = -(-gap // 2)
    side = cells - 2 * rim
    inside = labels >= 0
    tick(f"packing {count} charts")
    upright = _upright(places, labels, count)
    extent = _extents(upright, labels, count)
    largest = side * (1 - 1e-9) / max(float(extent.max()), 1e-300)  # the longest chart just fits
    scale = _first_scale(extent, largest, side, gap)
    best, too_large = None, np.inf
    for attempt in range(MAX_PASSES):
        tick(f"packing {count} charts, pass {attempt + 1}")
        grid = upright * scale
        lying = _quarter_turn(grid, extent[labels] * scale)
        outlines = []
        for points in (grid, lying):
            outlines.append(_outlines(points, labels, edges, count))
            tick(f"packing {count} charts, pass {attempt + 1}")
        fit = _fall(outlines, side, gap, tick)
        if fit.height <= side:
            best = (scale, fit)
            if fit.height >= ENOUGH * side or scale >= largest:
                break
        else:
            too_large = scale
        if best is not None and too_large < CLOSE * best[0]:
            break
        scale = _next_scale(scale, fit.height / side, best and best[0], too_large, largest)
    if best is None:
        raise ValueError(
            f"unwrap: {count} charts with {padding} texels between them do not fit into a texture "
            f"of {resolution} x {resolution}; raise the resolution, lower the padding, or remove "
            "small parts and simplify the mesh with V3D Clean Mesh"
        )
    scale, fit = best
    grid = upright * scale
    turns = fit.turns[labels][:, None]
    grid = np.where(turns % 2 == 1, _quarter_turn(grid, extent[labels] * scale), grid)
    grid = np.where(turns >= 2, fit.boxes[labels] - grid, grid)
    result[inside] = ((grid + fit.corners[labels] + rim) * cell)[inside]
    return np.clip(result, 0, resolution)


@dataclass(frozen=True)
class _Fit:
    corners: Ints  # [C, 2] left and upper cell of each chart's box
    turns: Ints  # [C] right angles, in the order 0, 90, 180, 270 degrees
    boxes: Ints  # [C, 2] cells of each chart's box, after the turn
    height: int  # rows used


def _next_scale(
    scale: float, filled: float, fits: float | None, too_large: float, largest: float
) -> float:
    # heights grow with about the square of the scale; the guess stays between what is known
    guess = scale * min(max(0.995 / filled, 0.3), 2) ** 0.5
    if fits is not None and np.isfinite(too_large):
        span = too_large - fits
        guess = min(max(guess, fits + 0.25 * span), too_large - 0.25 * span)
    return min(guess, largest)


def _quarter_turn(grid: Floats, extent: Floats) -> Floats:
    # (x, y) -> (h - y, x): a turn, never a reflection
    return np.stack([extent[:, 1] - grid[:, 1], grid[:, 0]], axis=1)


def _extents(places: Floats, labels: Ints, count: int) -> Floats:  # [C, 2]
    extent = np.zeros((count, 2))
    inside = labels >= 0
    np.maximum.at(extent, labels[inside], places[inside])
    return extent


def _upright(places: Floats, labels: Ints, count: int) -> Floats:  # [P, 2]
    # every chart turned so that its box is smallest, stands upright and starts at the origin
    inside = np.flatnonzero(labels >= 0)
    order = inside[np.argsort(labels[inside], kind="stable")]
    starts = np.searchsorted(labels[order], np.arange(count))
    points = places[order]
    owner = labels[order]
    angle, step = np.zeros(count), np.pi / 2 / TURNS
    for offsets in (np.arange(TURNS) * step, np.linspace(-step, step, TURNS + 1)):
        areas, lying = np.zeros((len(offsets), count)), np.zeros((len(offsets), count), np.bool_)
        for index, offset in enumerate(offsets):
            turned = _turned(points, (angle + offset)[owner])
            spans = np.maximum.reduceat(turned, starts) - np.minimum.reduceat(turned, starts)
            areas[index], lying[index] = spans.prod(axis=1), spans[:, 0] > spans[:, 1]
        best = areas.argmin(axis=0)
        angle = angle + offsets[best]
    angle = angle + np.where(lying[best, np.arange(count)], np.pi / 2, 0.0)
    turned = _turned(points, angle[owner])
    turned -= np.minimum.reduceat(turned, starts)[owner]
    result = np.zeros_like(places)
    result[order] = turned
    return result


def _turned(points: Floats, angle: Floats) -> Floats:  # [P, 2]
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.stack(
        [points[:, 0] * cosine + points[:, 1] * sine, points[:, 1] * cosine - points[:, 0] * sine],
        axis=1,
    )


def _first_scale(extent: Floats, largest: float, side: int, gap: int) -> float:
    # cells for a unit of length: boxes with their gaps would fill a share of the square
    low, high = 0.0, largest
    for _ in range(50):
        middle = 0.5 * (low + high)
        need = (extent * middle + 1 + gap).prod(axis=1).sum()
        low, high = (middle, high) if need < FIRST_FILL * side**2 else (low, middle)
    return max(low, 0.05 * largest)


def _outlines(places: Floats, labels: Ints, edges: Ints, count: int) -> list[Outline]:
    # cells touched in each column of each chart: edges clipped to the columns they cross
    which, column, bottom, top = touched_columns(places[edges[:, 0]], places[edges[:, 1]])
    chart = labels[edges[which, 0]]
    widths = np.ones(count, np.int64)
    np.maximum.at(widths, chart, column + 1)
    offsets = np.cumsum(widths) - widths
    key = offsets[chart] + column
    low = np.full(widths.sum(), np.iinfo(np.int64).max)
    high = np.zeros(widths.sum(), np.int64)
    np.minimum.at(low, key, bottom)
    np.maximum.at(high, key, top)
    low = np.maximum(np.minimum(low, np.maximum(high - 1, 0)), 0)
    high = np.maximum(high, low + 1)
    return [
        Outline(low[o : o + w], high[o : o + w])
        for o, w in zip(offsets.tolist(), widths.tolist(), strict=True)
    ]


def _fall(outlines: list[list[Outline]], side: int, gap: int, tick: Callable[[str], None]) -> _Fit:
    # drop all charts, the tallest first; beyond twice the height the rest no longer matters
    count = len(outlines[0])
    corners, boxes = np.zeros((count, 2), np.int64), np.zeros((count, 2), np.int64)
    turns = np.zeros(count, np.int64)
    horizon = np.zeros(side, np.int32)
    heights = np.array([outline.high.max() for outline in outlines[0]])
    areas = np.array([len(outline.low) for outline in outlines[0]]) * heights
    for step, chart in enumerate(np.lexsort((-areas, -heights)).tolist()):
        if step % 64 == 0:
            tick(f"packing {count} charts")
        best = None
        tried = [outlines[0][chart], outlines[1][chart]]
        if areas[chart] > SMALL_CHART:
            tried += [outline.upside_down() for outline in tried]
        for turn, outline in enumerate(tried):
            spot = _best_spot(horizon, outline)
            if spot is not None and (best is None or spot[0] < best[0]):
                best = (*spot, turn, outline)
        assert best is not None  # no chart is longer than the square
        _, x, y, turn, outline = best
        corners[chart], turns[chart] = (x, y), turn
        boxes[chart] = len(outline.low), outline.high.max()
        _raise(horizon, outline, x, y, gap)
        if y + boxes[chart, 1] > GIVE_UP * side:
            break
    return _Fit(corners, turns, boxes, int((corners[:, 1] + boxes[:, 1]).max()))


def _best_spot(horizon: Ints, outline: Outline) -> tuple[float, int, int] | None:
    # cost, column and row where a chart wastes least area under it and stays low
    low = outline.low.astype(np.int32)
    width = len(low)
    if width > len(horizon):
        return None
    rows = (sliding_window_view(horizon, width) - low).max(axis=1)
    rows = np.maximum(rows, 0)
    sums = np.concatenate([[0], np.cumsum(horizon, dtype=np.int64)])
    below = rows.astype(np.int64) * width + low.sum() - (sums[width:] - sums[:-width])
    cost = below / width + LOW_WEIGHT * (rows + outline.high.max())
    x = int(cost.argmin())
    return float(cost[x]), x, int(rows[x])


def _raise(horizon: Ints, outline: Outline, x: int, y: int, gap: int) -> None:
    # the chart's upper side, widened by the gap in all directions, becomes part of the horizon
    width = len(outline.high)
    tops = np.zeros(width + 4 * gap, np.int64)
    tops[2 * gap : 2 * gap + width] = outline.high + (y + gap)
    wide = sliding_window_view(tops, 2 * gap + 1).max(axis=1)  # width + 2 gap
    first = max(x - gap, 0)
    last = min(x + width + gap, len(horizon))
    wide = wide[first - (x - gap) : last - (x - gap)]
    horizon[first:last] = np.maximum(horizon[first:last], wide)

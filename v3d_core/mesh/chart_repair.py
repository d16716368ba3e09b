"""Taking charts apart where they are turned over or lie on top of themselves."""

from __future__ import annotations

import logging
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from .chart_growing import grown_charts, projected_charts
from .chart_overlaps import faces_at_crossings, faces_at_crowded_points, faces_on_top
from .charts import (
    Charts,
    Floats,
    Ints,
    connected_labels,
    face_vectors,
    joined,
    signed_areas,
    with_true_scale,
)
from .unwrap_config import UnwrapConfig

logger = logging.getLogger(__name__)

OVERLAP_CELLS = 2048  # least side of the grid, as large as the surface, that overlaps are seen on
MAX_REPAIRS = 8  # rounds of cutting again before what still overlaps becomes single faces
FLAT_SHARE = 1e-6  # of its area on the surface: a face with less in its chart was not laid flat


def without_overlaps(
    charts: Charts,
    vertices: Floats,  # [N, 3]
    faces: Ints,  # [M, 3]
    config: UnwrapConfig,
    tick: Callable[[], None],
) -> Charts:
    """Charts without faces that are collapsed, turned over or on top of others of their chart.

    Such faces, most often single ones at a chart's rim, leave it and are cut and projected anew,
    until none is left; the last of them become charts of one face, which cannot overlap.

    Args:
        charts: Charts of the faces at their true scale.
        vertices: Positions. [N, 3]
        faces: Vertices of faces with area. [M, 3]
        config: The texture's size bounds the size of overlaps that go unseen.
        tick: Called several times a second.
    """
    area = float(face_vectors(vertices, faces)[1].sum())
    cell = area**0.5 / max(OVERLAP_CELLS, config.resolution)
    sound: list[tuple[Ints, Charts]] = []
    suspects = np.arange(len(faces))  # faces whose charts are still to be looked at
    for attempt in range(MAX_REPAIRS + 1):
        bad = _not_flat(charts, vertices, faces[suspects])
        tick()
        bad |= faces_at_crowded_points(charts)
        tick()
        bad |= faces_at_crossings(charts, tick)
        bad |= faces_on_top(charts, cell, tick)
        sick = np.isin(charts.labels, np.unique(charts.labels[bad]))
        well = np.flatnonzero(~sick)
        tick()
        sound.append((suspects[well], _remaining(charts, well)))
        if not sick.any():
            break
        logger.info("%d faces overlap in their charts and are cut again", bad.sum())
        torn, kept = np.flatnonzero(bad), np.flatnonzero(sick & ~bad)
        if attempt + 1 < MAX_REPAIRS:
            anew = grown_charts(
                vertices, faces[suspects[torn]], config.max_tilt_deg, lambda *_: tick()
            )
        else:
            torn, kept = np.flatnonzero(sick), torn[:0]
            anew = projected_charts(vertices, faces[suspects[torn]], np.arange(len(torn)))
        anew = with_true_scale(anew, vertices, faces[suspects[torn]])
        parts = [(kept, _remaining(charts, kept)), (torn, anew)]
        charts, suspects = _chosen(joined(parts, len(suspects)), sick), suspects[sick]
    return joined(sound, len(faces))


def _chosen(charts: Charts, mask: NDArray[np.bool_]) -> Charts:
    return Charts(charts.faces[mask], charts.sources, charts.places, charts.labels[mask])


def _remaining(charts: Charts, index: Ints) -> Charts:
    # the chosen faces where they are; a chart that falls apart is several charts
    used, corners = np.unique(charts.faces[index], return_inverse=True)
    corners = corners.reshape(-1, 3)
    labels = connected_labels(corners, len(used))
    return Charts(corners, charts.sources[used], charts.places[used], labels)


def _not_flat(charts: Charts, vertices: Floats, faces: Ints) -> NDArray[np.bool_]:  # [M]
    areas = face_vectors(vertices, faces)[1]
    return ~(signed_areas(charts.places, charts.faces) < -FLAT_SHARE * areas)

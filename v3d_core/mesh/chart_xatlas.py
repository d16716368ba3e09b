"""Charts made by xatlas, in pieces that are short enough to be cancelled between.

xatlas (Jonathan Young, after thekla_atlas) reports no progress through its Python package, holds
the interpreter's lock while it works and takes more than linear time. So the faces are cut into
patches first, xatlas flattens one patch after the other, and `chart_packing` packs all charts: for
20,000 faces that is twice as fast as one call, costs a tenth more charts, and no call takes longer
than a blink. A worker process would be cancellable too, but starting one imports the host's main
program a second time.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import numpy as np

from .charts import Charts, Floats, Ints, connected_labels, face_vectors, joined

PATCH_FACES = 2000  # largest patch: 0.1 to 0.2 s of xatlas
WORKING_SIZE = 1024  # side of a square as large as the surface: xatlas has absolute tolerances
TEXELS_PER_UNIT = 0.25  # xatlas' own packing is thrown away: the coarser, the faster


def xatlas_charts(
    xatlas: ModuleType,
    vertices: Floats,  # [N, 3]
    faces: Ints,  # [M, 3]
    max_cost: float,
    tick: Callable[[float, str], None],
) -> Charts:
    """Cut and flatten a surface with xatlas.

    Args:
        xatlas: The package.
        vertices: Positions. [N, 3]
        faces: Vertices of faces with area. [M, 3]
        max_cost: xatlas' bound on a chart's bending, fraying and stretching.
        tick: Called between patches with the share that is done and a line for people.

    Returns:
        Charts of all faces; xatlas may leave some faces without area in them.
    """
    area = face_vectors(vertices, faces)[1].sum()
    unit = WORKING_SIZE / max(area, 1e-300) ** 0.5
    middle = 0.5 * (vertices.max(axis=0) + vertices.min(axis=0))
    scaled = ((vertices - middle) * unit).astype(np.float32)
    options, packing = xatlas.ChartOptions(), xatlas.PackOptions()
    options.max_cost = max_cost
    options.fix_winding = True
    packing.texels_per_unit = TEXELS_PER_UNIT
    parts = []
    patches = _patches(scaled[faces].mean(axis=1))
    for number, patch in enumerate(patches):
        tick(number / len(patches), f"cutting with xatlas: patch {number + 1} of {len(patches)}")
        used, corners = np.unique(faces[patch], return_inverse=True)
        atlas = xatlas.Atlas()
        atlas.add_mesh(scaled[used], corners.reshape(-1, 3).astype(np.uint32))
        atlas.generate(options, packing)
        sources, corners, uvs = atlas.get_mesh(0)
        size = np.array([atlas.width, -atlas.height], np.float64) / (TEXELS_PER_UNIT * unit)
        corners = corners.astype(np.int64)
        labels = connected_labels(corners, len(sources))
        parts.append((patch, Charts(corners, used[sources], uvs * size, labels)))
    return joined(parts, len(faces))


def _patches(centres: Floats) -> list[Ints]:
    # halves across the longest side, until each has few enough faces
    pending, patches = [np.arange(len(centres))], []
    while pending:
        patch = pending.pop()
        if len(patch) <= PATCH_FACES:
            patches.append(patch)
            continue
        axis = np.ptp(centres[patch], axis=0).argmax()
        half = len(patch) // 2
        order = patch[np.argpartition(centres[patch, axis], half)]
        pending += [order[half:], order[:half]]
    return patches

"""How good an unwrapping is: what it fills, overlaps and stretches."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..structures import Mesh
from .chart_overlaps import covered_cells, covered_spans
from .charts import (
    connected_labels,
    degenerate_faces,
    face_vectors,
    metric,
    signed_areas,
    welded,
)


@dataclass(frozen=True)
class AtlasReport:
    """Figures of an unwrapping.

    Attributes:
        charts: Connected pieces.
        utilisation: Share of the texture that faces cover, in [0, 1] where nothing overlaps.
        doubled_texels: Texels whose middle lies in more than one face.
        mirrored_faces: Faces that are turned over against the others.
        area_stretch: Mean ratio, over the surface, of the larger to the smaller of a face's scale
            of area and that of the whole; 1 is perfect.
        angle_stretch: Mean ratio, over the surface, of the longer to the shorter axis of the
            ellipse that a circle on the surface becomes; 1 is perfect.
        texels_per_unit: Texels that one unit of length gets on average.
    """

    charts: int
    utilisation: float
    doubled_texels: int
    mirrored_faces: int
    area_stretch: float
    angle_stretch: float
    texels_per_unit: float


def measure_atlas(mesh: Mesh, resolution: int) -> AtlasReport:
    """Figures of a mesh's uvs.

    Args:
        mesh: A mesh with uvs; faces that share a place and uvs belong to one chart.
        resolution: Texels along each side of the texture.

    Raises:
        ValueError: The mesh has no uvs or no face with area.
    """
    if mesh.uvs is None:
        raise ValueError("measure_atlas: the mesh has no uvs; unwrap it first")
    vertices = mesh.vertices.detach().cpu().double().numpy()
    faces, texels = mesh.faces.cpu().numpy(), mesh.uvs.detach().cpu().double().numpy() * resolution
    solid = ~degenerate_faces(vertices, faces)
    if not solid.any():
        raise ValueError(f"measure_atlas: none of the {len(faces)} faces has an area")
    points, corners = welded(np.concatenate([vertices, texels], axis=1), faces)
    charts = int(connected_labels(corners, len(points)).max()) + 1
    faces = faces[solid]
    cover = np.zeros(resolution * resolution, np.int64)
    for _, row, column in covered_cells(covered_spans(texels[faces])):
        inside = (row >= 0) & (row < resolution) & (column >= 0) & (column < resolution)
        cover += np.bincount((row * resolution + column)[inside], minlength=len(cover))
    flat, areas = signed_areas(texels, faces), face_vectors(vertices, faces)[1]
    scale = float(np.abs(flat).sum() / areas.sum())
    weights = areas / areas.sum()
    ratio = np.maximum(np.abs(flat), 1e-12 * scale * areas) / (areas * scale)
    values = np.sqrt(np.maximum(np.linalg.eigvalsh(metric(vertices, faces, texels, faces)), 0))
    angle = values[:, 1] / np.maximum(values[:, 0], 1e-12 * values[:, 1].max())
    return AtlasReport(
        charts=charts,
        utilisation=float(np.abs(flat).sum()) / resolution**2,
        doubled_texels=int((cover > 1).sum()),
        mirrored_faces=int(min((flat > 0).sum(), (flat < 0).sum())),
        area_stretch=float((weights * np.maximum(ratio, 1 / ratio)).sum()),
        angle_stretch=float((weights * angle).sum()),
        texels_per_unit=scale**0.5,
    )

"""Unwrapping: texture coordinates for any mesh."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import torch
from torch import Tensor

from ..backends import load, problem
from ..progress import Progress, silent
from ..structures import Mesh
from .chart_growing import grown_charts
from .chart_packing import pack
from .chart_repair import without_overlaps
from .chart_xatlas import xatlas_charts
from .charts import (
    Charts,
    Floats,
    degenerate_faces,
    joined,
    welded,
    with_collapsed_faces,
    with_true_scale,
)
from .unwrap_config import UnwrapConfig

logger = logging.getLogger(__name__)

MAX_FACES = 500_000  # more would take minutes, and give a face less than two texels of 1024 x 1024
STEPS = 100  # of progress
CUTTING_STEPS, CHECKING_STEPS = 60, 15  # the rest is packing
UV_TOLERANCE = 1e-5  # beyond 0..1 that files with 5 decimals may hold; clamped


def choose_engine() -> tuple[str, str]:
    """The engine of `auto`, and why it is not xatlas."""
    reason = problem("xatlas")
    return ("charts", reason) if reason else ("xatlas", "")


def unwrap(mesh: Mesh, config: UnwrapConfig | None = None, *, progress: Progress = silent) -> Mesh:
    """Cut a mesh open along seams and lay it out in the unit square, so that it can be textured.

    Faces keep their order and every corner its position, bit for bit: only vertices on seams are
    doubled and unused ones go. All charts have the same scale, none is mirrored (the picture of a
    surface seen from outside is not a mirror image), none overlaps itself or another, and between
    two of them there are at least `config.padding` texels.

    Args:
        mesh: Any triangle mesh: several parts, open, non-manifold, with degenerate faces.
        config: How; None takes the defaults.
        progress: Called several times a second; raising in it cancels.

    Returns:
        The mesh with `uvs` in [0, 1] ((0, 0) is the upper left texel corner), its normals and
        vertex colours, and no texture: an old one would not fit the new coordinates.

    Raises:
        ValueError: The mesh has no faces or too many, it has no usable uvs to keep, or its charts
            do not fit into the texture.
        MissingPackageError: xatlas was asked for by name and is not installed.
    """
    config = config or UnwrapConfig()
    if not len(mesh.faces):
        raise ValueError("unwrap: the mesh has 0 faces; give a mesh with at least 1 face")
    if config.engine == "keep":
        return _kept(mesh)
    if len(mesh.faces) > MAX_FACES:
        raise ValueError(
            f"unwrap: the mesh has {len(mesh.faces)} faces, at most {MAX_FACES} can be unwrapped; "
            "simplify it with V3D Clean Mesh first"
        )
    engine = config.engine
    if engine == "auto":
        engine, reason = choose_engine()
        if reason:
            logger.info("unwrapping with charts of our own: %s", reason)
    # by place, bit for bit: seams of old uvs or of normals are no borders of the surface
    vertices, faces = welded(
        mesh.vertices.detach().cpu().double().numpy(), mesh.faces.cpu().numpy()
    )

    def cutting(share: float, text: str) -> None:
        progress(int(share * CUTTING_STEPS), STEPS, None, text)

    def checking() -> None:
        progress(CUTTING_STEPS, STEPS, None, "looking for overlaps")

    def packing(text: str) -> None:
        progress(CUTTING_STEPS + CHECKING_STEPS, STEPS, None, text)

    cutting(0.0, "looking at the mesh")
    solid = np.flatnonzero(~degenerate_faces(vertices, faces))
    cutting(0.0, "looking at the mesh")
    if engine == "xatlas":
        charts = xatlas_charts(load("xatlas"), vertices, faces[solid], config.max_cost, cutting)
    else:
        charts = grown_charts(vertices, faces[solid], config.max_tilt_deg, cutting)
    checking()
    charts = with_true_scale(charts, vertices, faces[solid])
    checking()
    charts = without_overlaps(charts, vertices, faces[solid], config, checking)
    charts = with_collapsed_faces(joined([(solid, charts)], len(faces)), faces, len(vertices))
    edges = np.concatenate(
        [charts.faces[:, [0, 1]], charts.faces[:, [1, 2]], charts.faces[:, [2, 0]]]
    )
    texels = pack(
        charts.places, charts.point_labels(), edges, config.resolution, config.padding, packing
    )
    logger.info("unwrapped %d faces into %d charts (%s)", len(faces), charts.count, engine)
    progress(STEPS, STEPS, None, f"{charts.count} charts")
    return _split(mesh, charts, texels / config.resolution)


def _split(mesh: Mesh, charts: Charts, uvs: Floats) -> Mesh:
    codes = charts.faces * len(mesh.vertices) + mesh.faces.cpu().numpy()
    pairs, corners = np.unique(codes, return_inverse=True)  # of a point and a vertex of the mesh
    points = pairs // len(mesh.vertices)
    sources = torch.from_numpy(pairs % len(mesh.vertices)).to(mesh.device)

    def carried(values: Tensor | None) -> Tensor | None:
        return None if values is None else values[sources]

    return Mesh(
        mesh.vertices[sources],
        torch.from_numpy(corners.reshape(-1, 3)).to(mesh.device),
        carried(mesh.normals),
        torch.from_numpy(uvs[points]).to(mesh.vertices),
        carried(mesh.vertex_colours),
    )


def _kept(mesh: Mesh) -> Mesh:
    if mesh.uvs is None:
        raise ValueError(
            "unwrap: engine keep needs a mesh with uvs, this one has none; choose engine auto"
        )
    used = mesh.uvs[mesh.faces.reshape(-1).unique()]
    low, high = float(used.min()), float(used.max())
    if low < -UV_TOLERANCE or high > 1 + UV_TOLERANCE:
        raise ValueError(
            f"unwrap: engine keep needs uvs in 0 to 1, these reach from {low:g} to {high:g} (a "
            "repeated or tiled texture); choose engine auto for new ones"
        )
    return dataclasses.replace(mesh, uvs=mesh.uvs.clamp(0, 1), texture=None)

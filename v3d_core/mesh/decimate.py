"""Fewer faces with a bound on how far the surface moves (Garland and Heckbert 1997).

The collapses are fast-simplification's. It restarts with every halving of the faces: it stops early
otherwise, for it looks at the normals that faces had when it started, and many small steps can be
cancelled and checked. It has no link condition, so a step may leave edges of four faces; they are
taken apart after each step, and a step after which a closed mesh is not closed is not taken.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..mesh_manifold import drop_fins, split_shared_edges
from ..mesh_queries import MeshQueries
from ..mesh_repair import signed_volume, with_normals
from ..structures import Mesh
from .bad_faces import collapsed
from .surface_error import POINTS_PER_BATCH, SurfaceError, surface_error
from .topology import count_edges

AGGRESSIVENESS = 4.0  # how fast the threshold of a step grows: less is slower and more exact
UNIT_DIAGONAL = 8.0  # the package's thresholds are lengths; meshes are scaled to this diagonal
STEP_SHARE = 0.5  # of the faces stay in a step
STEP_FACES = 400_000  # at most so many go in a step: half a second
BOUND_ROUNDS = 4  # of looking for the fewest faces that keep the bound
LEAST_VOLUME = 0.5  # of a closed mesh; a step that loses more has turned it inside out somewhere

# the package works on global variables of its own
_ONE_AT_A_TIME = threading.Lock()


class Decimated(NamedTuple):
    """A lighter mesh.

    Attributes:
        mesh: With normals, and colours where the source has them; no uvs, no texture.
        error: Against the source; None where nothing was decimated.
        stopped: Why there are more faces than asked: `max_error`, `shape`, or `` when there are not.
    """

    mesh: Mesh
    error: SurfaceError | None
    stopped: str


def decimate(
    mesh: Mesh,
    target_faces: int,
    *,
    max_error: float = 1.0,
    tick: Callable[[float], None] = lambda share: None,
) -> Decimated:
    """The mesh with at most so many faces, or with as many more as the bound on its error needs.

    Vertex normals and colours are those at the nearest points of the source.

    Args:
        mesh: Faces agree about the outside; a watertight mesh stays watertight.
        target_faces: Largest number of faces, at least 4.
        max_error: Bound on the 99.9th percentile of the distances between source and result, the
            larger one of both directions, as a share of the source's diagonal, 0 to 1.
        tick: Told the finished share several times a second; raising in it cancels. One step on a
            million faces takes about a second: the package holds the interpreter's lock meanwhile.

    Raises:
        ValueError: `target_faces` or `max_error` is out of range.
    """
    if target_faces < 4:
        raise ValueError(f"decimate: target_faces must be at least 4, got {target_faces}")
    if not 0 <= max_error <= 1:
        raise ValueError(f"decimate: max_error must lie in 0 to 1, got {max_error:g}")
    if len(mesh.faces) <= target_faces:
        return Decimated(mesh, None, "")
    source = mesh if mesh.normals is not None else with_normals(mesh)
    tick(0.0)
    bare = Mesh(mesh.vertices, mesh.faces)
    levels = _levels(bare, target_faces, lambda share: tick(0.6 * share))
    tick(0.6)
    queries = MeshQueries(source.vertices, source.faces)
    tick(0.7)

    def measured(light: Mesh) -> SurfaceError:
        return surface_error(light, source, queries=queries, tick=lambda: tick(0.7))

    stopped = "" if len(levels[-1].faces) <= target_faces else "shape"
    light, error = levels[-1], measured(levels[-1])
    if error.high > max_error:
        light, error = _within_bound(levels, max_error, measured, lambda: tick(0.8))
        stopped = "max_error"
    tick(0.9)
    if light is bare:
        return Decimated(mesh, None, stopped)
    return Decimated(carried(light, source, queries, lambda: tick(0.95)), error, stopped)


def _levels(mesh: Mesh, target_faces: int, tick: Callable[[float], None]) -> list[Mesh]:
    """The mesh and ever lighter ones, down to the target or to where no step keeps the shape."""
    levels, whole = [mesh], len(mesh.faces)
    while (count := len(levels[-1].faces)) > target_faces:
        aim = max(target_faces, int(count * STEP_SHARE), count - STEP_FACES)
        lighter = None
        # a smaller step may go where a large one breaks the mesh
        for some in (aim, (aim + count) // 2, (aim + 3 * count) // 4):
            lighter = simplified(levels[-1], some, lambda: tick(1 - count / whole))
            if lighter is not None:
                break
        if lighter is None:
            break
        levels.append(lighter)
    return levels


def _within_bound(
    levels: list[Mesh],
    max_error: float,
    measured: Callable[[Mesh], SurfaceError],
    tick: Callable[[], None],
) -> tuple[Mesh, SurfaceError | None]:
    """About the lightest mesh within the bound, and its error; the source has none."""
    good, error = len(levels) - 1, None
    while good:
        good -= 1
        error = None if good == 0 else measured(levels[good])
        if error is None or error.high <= max_error:
            break
    best, fewest = levels[good], len(levels[good + 1].faces)
    for _ in range(BOUND_ROUNDS):
        aim = int((len(best.faces) * fewest) ** 0.5)
        lighter = simplified(levels[good], aim, tick)
        if lighter is None or len(lighter.faces) >= len(best.faces):
            break
        found = measured(lighter)
        if found.high <= max_error:
            best, error = lighter, found
        else:
            fewest = len(lighter.faces)
    return best, error


def simplified(
    mesh: Mesh, target_faces: int, tick: Callable[[], None] = lambda: None
) -> Mesh | None:
    """One step of decimation, vertices and faces alone; None where it would break the mesh."""
    import fast_simplification

    vertices, faces = mesh.vertices.double().cpu().numpy(), mesh.faces.cpu().numpy()
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scale = UNIT_DIAGONAL / max(float(np.linalg.norm(high - low)), 1e-300)
    middle = (low + high) / 2
    tick()
    with _ONE_AT_A_TIME:
        made = fast_simplification.simplify(
            (vertices - middle) * scale,
            faces.astype(np.int32),
            target_count=target_faces,
            agg=AGGRESSIVENESS,
        )
    tick()
    points, fewer = made[0], np.asarray(made[1], np.int64)
    if not len(fewer) or not np.isfinite(points).all():
        return None
    light = Mesh(
        torch.from_numpy(points / scale + middle).to(mesh.vertices),
        torch.from_numpy(fewer[~collapsed(fewer)]).to(mesh.device),
    )
    light = drop_fins(light)
    tick()
    closed = count_edges(light.faces.cpu().numpy()).watertight
    tick()
    if not closed:
        light = split_shared_edges(light, tick)
    if not 0 < len(light.faces) < len(mesh.faces):
        return None
    if not closed and count_edges(faces).watertight:
        closed = count_edges(light.faces.cpu().numpy()).watertight
        return light if closed and _keeps_volume(light, mesh) else None
    return light if not closed or _keeps_volume(light, mesh) else None


def _keeps_volume(light: Mesh, mesh: Mesh) -> bool:
    before, after = signed_volume(mesh), signed_volume(light)
    return bool(after * np.sign(before) >= LEAST_VOLUME * abs(before))


def carried(
    light: Mesh,
    source: Mesh,
    queries: MeshQueries,
    tick: Callable[[], None] = lambda: None,
) -> Mesh:
    """A mesh with normals and vertex colours of the nearest points of another one.

    Args:
        light: Vertices and faces.
        source: With normals.
        queries: Nearest points of the source.
        tick: Called several times a second.
    """
    assert source.normals is not None
    own = with_normals(light).normals
    normals, colours = [], []
    assert own is not None
    for points, fallback in zip(
        light.vertices.split(POINTS_PER_BATCH), own.split(POINTS_PER_BATCH), strict=True
    ):
        face, weights, _ = queries.closest(points)
        corners = source.faces[face]
        mixed = _mixed(source.normals, corners, weights)
        # across a thin wall the nearest point may be one of the other side
        same_side = (mixed * fallback).sum(-1, keepdim=True) > 0
        normals.append(F.normalize(torch.where(same_side, mixed, fallback), dim=-1))
        if source.vertex_colours is not None:
            colours.append(_mixed(source.vertex_colours, corners, weights))
        tick()
    return dataclasses.replace(
        light,
        normals=torch.cat(normals),
        vertex_colours=torch.cat(colours) if colours else None,
    )


def _mixed(values: Tensor, corners: Tensor, weights: Tensor) -> Tensor:
    # [N, C], [P, 3], [P, 3] -> [P, C]
    return (values[corners] * weights.to(values)[..., None]).sum(dim=1)

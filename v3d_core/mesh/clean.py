"""Any mesh becomes one that other programs take: repaired, smoothed, lighter, watertight if it was."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..mesh_manifold import split_shared_edges
from ..mesh_repair import select_faces, with_normals
from ..progress import Progress, silent
from ..structures import Mesh
from .bad_faces import (
    LEAST_HEIGHT,
    collapsed,
    heights,
    repeated,
    turn_edges,
    without_short_sides,
)
from .clean_config import CleanConfig
from .decimate import Decimated, decimate
from .parts import chosen_parts, hidden_parts, outward_turns
from .shape import Distance, close_holes, onto_surface, smooth_keeping_volume
from .surface_error import diagonal
from .texture_colours import texture_as_colours
from .topology import (
    Pairs,
    agreeing_turns,
    count_edges,
    edge_pairs,
    patches,
    separate_fans,
    weld_borders,
)

SHORTEST_SIDE = 1e-7  # share of the diagonal; float32 positions lie about that far apart


class Cleaned(NamedTuple):
    """A clean mesh, and what was done: counts, the error of the surface, seconds; fit for JSON."""

    mesh: Mesh
    report: dict[str, Any]


def clean(
    mesh: Mesh,
    config: CleanConfig | None = None,
    *,
    distance: Distance | None = None,
    progress: Progress = silent,
) -> Cleaned:
    """Repair a mesh, drop what nobody sees, smooth it, lay it onto its field and make it lighter.

    The order: borders welded, faces without area or in the same place twice, orientation, edges of
    more than two faces, holes, small and hidden parts, smoothing, the field, decimation. What was
    watertight stays so.

    Uvs and texture stay while faces are only dropped, turned or moved. Where holes are filled or
    the mesh is decimated they cannot: the texture becomes vertex colours, and the report says so.

    Args:
        mesh: Any mesh with faces.
        config: What is done and how far; None is the default.
        distance: A signed distance: points [N, 3] to distances [N], negative inside, and unit
            normals [N, 3]; vertices are moved onto its surface before decimation.
        progress: Told after every step; raising in it cancels. Steps take at most about a
            second for a million faces.

    Returns:
        The mesh with unit vertex normals, and the report.

    Raises:
        ValueError: The mesh has no faces, or none is left.
    """
    config = CleanConfig() if config is None else config
    if not len(mesh.faces):
        raise ValueError(
            f"clean: the mesh has {len(mesh.vertices)} vertices but 0 faces; it needs at least 1"
        )
    started, unit = time.perf_counter(), diagonal(mesh)
    if unit == 0:
        raise ValueError(
            f"clean: all {len(mesh.faces)} faces lie in one point; there is no surface"
        )
    bar = _Bar(progress)
    bar(0.0, "Looking at the mesh")
    before = count_edges(mesh.faces.cpu().numpy())
    work = _Work(mesh, bar)
    repair(work, config, unit)
    reshape(work, config, unit, distance)
    light = _lighter(work, config)
    result = work.finished(mesh, light.mesh)
    after = count_edges(result.faces.cpu().numpy())
    bar(1.0, f"Mesh of {len(result.faces):,} faces")
    report = {
        "faces_before": len(mesh.faces),
        "faces": len(result.faces),
        "vertices_before": len(mesh.vertices),
        "vertices": len(result.vertices),
        "watertight_before": before.watertight,
        "watertight": after.watertight,
        "open_edges": after.open,
        "shared_edges": after.shared,
        **work.counts,
        "decimation_error": None if light.error is None else dataclasses.asdict(light.error),
        "decimation_stopped_by": light.stopped or None,
        "texture": work.texture_fate(mesh),
        "seconds": round(time.perf_counter() - started, 3),
    }
    return Cleaned(result, report)


def repair(work: _Work, config: CleanConfig, unit: float) -> None:
    """All that makes faces agree: one surface, looking outward, closed where holes are small."""
    tick = work.bar.stage(0.0, 0.3, "Repairing the mesh")
    target = weld_borders(work.vertices, work.faces, config.weld_distance * unit, lambda: tick(0.0))
    tick(0.05)
    work.join("welded_vertices", target)
    tick(0.1)
    work.counts |= {"joined_short_sides": 0, "straightened_faces": 0}
    if (heights(work.vertices, work.faces) < LEAST_HEIGHT).any():
        short = without_short_sides(work.vertices, work.faces, SHORTEST_SIDE * unit)
        work.join("joined_short_sides", short)
        work.drop("degenerate_faces", collapsed(work.faces))
        faces, turned = turn_edges(work.vertices, work.faces)
        work.replace_faces("straightened_faces", faces, turned)
    tick(0.2)
    work.drop("duplicate_faces", repeated(work.faces))
    if not len(work.faces):
        raise ValueError("clean: 0 faces are left of the mesh: none of them has an area of its own")
    tick(0.3)
    pairs = edge_pairs(work.faces)
    turns, one_sided = agreeing_turns(work.faces, pairs)
    work.counts["one_sided_faces"] = one_sided
    tick(0.4)
    patch = patches(work.faces, pairs)
    tick(0.45)
    outward = outward_turns(work.vertices, work.faces, patch, turns, lambda: tick(0.45))
    work.turn("turned_faces", turns ^ outward)
    tick(0.5)
    edges = count_edges(work.faces)
    work.counts["shared_edges_before"] = edges.shared
    if edges.shared:
        work.split_shared(lambda: tick(0.5))
    tick(0.5)
    if edges.shared or edges.twisted or edges.open:
        pairs = edge_pairs(work.faces)
        tick(0.55)
        work.separate(pairs)
    tick(0.6)
    parts = chosen_parts(
        work.vertices, work.faces, config.min_component_share, config.max_components
    )
    work.drop("small_part_faces", ~parts)
    tick(0.7)
    work.counts["hidden_part_faces"] = 0
    if config.drop_hidden:
        hidden = hidden_parts(work.vertices, work.faces, lambda: tick(0.8))
        work.drop("hidden_part_faces", hidden)
        tick(0.8)
    work.counts["holes_filled"] = 0
    if config.max_hole_edges and count_edges(work.faces).open:
        tick(0.85)
        filled, count = close_holes(work.mesh, config.max_hole_edges, lambda: tick(0.9))
        work.counts["holes_filled"] = count
        if count:
            work.replace_mesh(filled)
    tick(1.0)


def reshape(work: _Work, config: CleanConfig, unit: float, distance: Distance | None) -> None:
    """Vertices moved: smoothed, then laid onto the surface of a signed distance."""
    work.counts["smoothing_moved"] = 0.0
    if config.smooth_iterations:
        tick = work.bar.stage(0.3, 0.1, "Smoothing the mesh")
        smooth = smooth_keeping_volume(work.mesh, config.smooth_iterations, tick)
        work.move("smoothing_moved", smooth, unit)
    if distance is not None:
        tick = work.bar.stage(0.4, 0.1, "Laying vertices onto the field")
        laid, figures = onto_surface(work.mesh, distance, unit, tick)
        work.move("field_moved", laid, unit)
        work.counts |= figures


def _lighter(work: _Work, config: CleanConfig) -> Decimated:
    tick = work.bar.stage(0.5, 0.4, "Decimating the mesh")
    if not config.target_faces or len(work.mesh.faces) <= config.target_faces:
        return Decimated(work.mesh, None, "")
    return decimate(work.mesh, max(4, config.target_faces), max_error=config.max_error, tick=tick)


class _Work:
    """The mesh while it is repaired, what was done, and which corner was which of the original.

    `corners` [M, 3] are vertices of the original, so that uvs can be given back; None once faces
    are new.
    """

    def __init__(self, mesh: Mesh, bar: _Bar) -> None:
        self.mesh = Mesh(
            mesh.vertices, mesh.faces, normals=mesh.normals, vertex_colours=mesh.vertex_colours
        )
        self.corners: np.ndarray | None = mesh.faces.cpu().numpy()
        self.bar = bar
        self.counts: dict[str, Any] = {}
        self.faces = mesh.faces.cpu().numpy()
        self.vertices = mesh.vertices.double().cpu().numpy()

    def replace_mesh(self, mesh: Mesh, corners: np.ndarray | None = None) -> None:
        """Go on with another mesh."""
        self.mesh, self.corners = mesh, corners
        self.faces = mesh.faces.cpu().numpy()
        self.vertices = mesh.vertices.double().cpu().numpy()

    def _with_faces(self, faces: np.ndarray, normals: bool = True) -> None:
        self.faces = faces
        self.mesh = dataclasses.replace(
            self.mesh,
            faces=torch.from_numpy(faces).to(self.mesh.device),
            normals=self.mesh.normals if normals else None,
        )

    def join(self, name: str, target: np.ndarray) -> None:  # [N]
        """Let vertices become others; faces that collapse by it go."""
        self.counts[name] = int((target != np.arange(len(target))).sum())
        if self.counts[name]:
            self._with_faces(target[self.faces], normals=False)
        self.drop("degenerate_faces", collapsed(self.faces))

    def drop(self, name: str, faces: np.ndarray) -> None:  # [M] bool
        """Drop faces."""
        self.counts[name] = self.counts.get(name, 0) + int(faces.sum())
        if faces.any():
            self._with_faces(self.faces[~faces])
            self.corners = None if self.corners is None else self.corners[~faces]

    def turn(self, name: str, faces: np.ndarray) -> None:  # [M] bool
        """Let faces look the other way."""
        self.counts[name] = int(faces.sum())
        if faces.any():
            turned = np.where(faces[:, None], self.faces[:, ::-1], self.faces)
            if self.corners is not None:
                self.corners = np.where(faces[:, None], self.corners[:, ::-1], self.corners)
            self._with_faces(turned, normals=False)

    def replace_faces(self, name: str, faces: np.ndarray, count: int) -> None:
        """Other faces on the same vertices."""
        self.counts[name] = count
        if not np.array_equal(faces, self.faces):
            self._with_faces(faces, normals=False)
            self.corners = None

    def split_shared(self, tick: Callable[[], None]) -> None:
        """Take edges of four or more faces apart where solid lies between pairs of them."""
        mesh = split_shared_edges(self.mesh, tick)
        same = len(mesh.faces) == len(self.faces)
        self.replace_mesh(mesh, self.corners if same else None)

    def separate(self, pairs: Pairs) -> None:
        """Cut what only touches apart."""
        faces, source = separate_fans(self.faces, pairs)
        self.counts["cut_vertices"] = len(source) - len(np.unique(self.faces))
        index = torch.from_numpy(source).to(self.mesh.device)

        def taken(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[index]

        mesh = Mesh(
            self.mesh.vertices[index],
            torch.from_numpy(faces).to(self.mesh.device),
            normals=taken(self.mesh.normals),
            vertex_colours=taken(self.mesh.vertex_colours),
        )
        self.replace_mesh(mesh, self.corners)

    def move(self, name: str, vertices: Tensor, unit: float) -> None:
        """Move vertices; the report has the mean distance as a share of the diagonal."""
        moved = (vertices - self.mesh.vertices).double().norm(dim=-1).mean()
        self.counts[name] = float(moved) / unit
        self.mesh = dataclasses.replace(self.mesh, vertices=vertices, normals=None)
        self.vertices = vertices.double().cpu().numpy()

    def finished(self, original: Mesh, light: Mesh) -> Mesh:
        """The result with what the original had: uvs and texture, or its colours; with normals."""
        tick = self.bar.stage(0.9, 0.1, "Colours and normals")
        if light is not self.mesh:
            self.corners = None
        if original.uvs is not None and self.corners is not None:
            return self._with_uvs(original)
        mesh = light if light.normals is not None else with_normals(light)
        if original.uvs is not None and original.texture is not None:
            colours = texture_as_colours(original, mesh.vertices, tick)
            mesh = dataclasses.replace(mesh, vertex_colours=colours)
        return select_faces(mesh, torch.ones(len(mesh.faces), dtype=torch.bool, device=mesh.device))

    def _with_uvs(self, original: Mesh) -> Mesh:
        # one vertex for each pair of an original vertex and the place it has now
        assert self.corners is not None
        count = len(self.mesh.vertices)
        codes = self.corners.astype(np.int64) * count + self.faces
        pairs, index = np.unique(codes, return_inverse=True)
        smooth = self.mesh if self.mesh.normals is not None else with_normals(self.mesh)
        old, new = (torch.from_numpy(x).to(original.device) for x in divmod(pairs, count))
        colours = original.vertex_colours
        assert original.uvs is not None and smooth.normals is not None
        return Mesh(
            vertices=self.mesh.vertices[new],
            faces=torch.from_numpy(index.reshape(-1, 3)).to(original.device),
            normals=smooth.normals[new] if original.normals is None or smooth is not self.mesh
            else original.normals[old],
            uvs=original.uvs[old],
            vertex_colours=None if colours is None else colours[old],
            texture=original.texture,
        )  # fmt: skip

    def texture_fate(self, original: Mesh) -> str:
        """What became of uvs and texture, for the report."""
        if original.uvs is None:
            return "none"
        if self.corners is not None:
            return "kept"
        return "uvs dropped" if original.texture is None else "became vertex colours"


class _Bar:
    """Turns shares of stages into one progress from 0 to 100."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._share = progress, 0.0

    def __call__(self, share: float, text: str) -> None:
        self._share = max(self._share, share)
        self._progress(round(100 * self._share), 100, None, text)

    def stage(self, start: float, part: float, text: str) -> Callable[[float], None]:
        self(start, text)
        return lambda share: self(start + part * share, text)

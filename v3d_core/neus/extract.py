"""A closed, coloured triangle mesh from a signed-distance field."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ..fit_threads import cores_for_warp
from ..mesh_manifold import split_shared_edges
from ..mesh_repair import FACES_PER_BATCH, largest_solids, with_normals
from ..progress import Progress, silent
from ..structures import Mesh
from .extract_blocks import Distances, Lattice, SparseDistances, Tick, batch_size, march, refine

DEFAULT_RESOLUTION = 256  # voxels along the longest side
COARSE_CELLS = 128  # along the cube, to find the box around the surface
COARSE_TOP = 4  # of these, along the side of the cubes that finding it starts from
LARGEST_STEP = 0.5  # voxels; a vertex is farther from the surface only where the field is broken
LEAST_COSINE = 0.3  # between a face before and after a step; turned more, it would fold
MOST_FACES_ON_CUDA = 1 << 22  # cleaned and finished there: about 1 GB of temporaries
STAGES = {"search": 0.05, "distances": 0.5, "cubes": 0.2, "clean": 0.1, "vertices": 0.15}


class Field(Protocol):
    """A signed-distance field with colours on a cube of the world."""

    half_size: float  # of the cube, world units

    @property
    def centre(self) -> Tensor:
        """Of the cube, world units. [3]"""
        ...

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        ...

    def sdf(self, points: Tensor) -> Tensor:  # [N, 3] -> [N]
        """World units, negative inside; far from the surface a lower bound of the distance."""
        ...

    def sdf_and_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:  # [N, 3] -> [N], [N, 3]
        """Signed distance and d sdf / d point."""
        ...

    def colours(self, points: Tensor, gradients: Tensor) -> Tensor:  # [N, 3] twice -> [N, 3]
        """sRGB in [0, 1] at points of the surface with these gradients."""
        ...


@dataclass(frozen=True)
class ExtractConfig:
    """How a surface is taken out of a field, besides its resolution."""

    newton_steps: int = 1  # of the vertices onto the surface: leaves a thousandth of a voxel
    min_component_share: float = 0.02  # parts below this share of the largest part's area go
    max_components: int | None = None  # keep at most so many parts; None: no limit
    vertex_colours: bool = True

    def __post_init__(self) -> None:
        for name, low, high in (("newton_steps", 0, 16), ("min_component_share", 0, 1)):
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"{name} must lie in {low:g} to {high:g}, got {value:g}")
        if self.max_components is not None and self.max_components < 1:
            raise ValueError(f"max_components must be at least 1, got {self.max_components}")


def extract_mesh(
    field: Field,
    resolution: int = DEFAULT_RESOLUTION,
    *,
    config: ExtractConfig = ExtractConfig(),
    progress: Progress = silent,
) -> Mesh:
    """The surface of a field: a box around it, distances near it, marching cubes, then its vertices.

    What the cube of the field cuts off is closed there. Cavities that no outside reaches, and small
    parts, are dropped.

    Args:
        field: Anything with the methods of `Field`.
        resolution: Voxels along the longest side of the object, 16 to 2048.
        config: Other settings.
        progress: Told several times a second.

    Returns:
        A closed mesh on the CPU, faces outward, with unit vertex normals (the field's gradients)
        and sRGB vertex colours.

    Raises:
        ValueError: The resolution is out of range, or the field has no surface.
    """
    require_resolution(resolution)
    bar = _Bar(progress)
    with cores_for_warp(field.device):
        low, high = surface_box(field, bar.stage("search", "Looking for the surface"))
        lattice = Lattice.around(low, high, resolution)
        text = f"Distances at {resolution} voxels"
        samples = SparseDistances(_within_cube(field), lattice, bar.stage("distances", text))
        vertices, faces = march(samples, bar.stage("cubes", "Marching cubes"))
        del samples
        mesh = Mesh(vertices, faces).to(_workplace(field, len(faces)))
        mesh = _clean(mesh, config, bar.stage("clean", "Cleaning the surface"))
        if not len(mesh.faces):
            raise ValueError(_no_surface(field))
        mesh = _finish(mesh, field, lattice.voxel, config, bar.stage("vertices", "Vertices"))
    bar.done(f"Mesh of {len(mesh.faces):,} faces")
    return mesh.to("cpu")


def require_resolution(resolution: int) -> None:
    """Raise ValueError unless a mesh can be extracted at that many voxels."""
    if not 16 <= resolution <= 2048:
        raise ValueError(f"resolution must lie in 16 to 2048 voxels, got {resolution}")


def surface_box(field: Field, tick: Tick = lambda share: None) -> tuple[Tensor, Tensor]:
    """Lowest and highest corner of a box around the surface, a cell of the search too large. [3]

    Raises:
        ValueError: There is no surface in the field's cube.
    """
    low = field.centre.detach().double() - field.half_size
    cells = (COARSE_CELLS, COARSE_CELLS, COARSE_CELLS)
    lattice = Lattice(low, 2 * field.half_size / COARSE_CELLS, cells)
    distances = _within_cube(field)
    coords, _ = refine(distances, lattice, COARSE_TOP, 1, lambda: tick(0.5))
    if len(coords):
        # with the field's distances taken at their word, which is enough for a box
        reach = math.sqrt(3) / 2 * lattice.voxel
        batches = coords.split(batch_size(field.device))
        near = [distances(lattice.points(some + 0.5)).abs() <= reach for some in batches]
        coords = coords[torch.cat(near)]
    if not len(coords):
        raise ValueError(_no_surface(field))
    ends = torch.stack([coords.amin(dim=0), coords.amax(dim=0) + 1])
    return lattice.points(ends).double().unbind(0)  # type: ignore[return-value]


def _within_cube(field: Field) -> Distances:
    """Distances to the part of the solid that lies in the field's cube, defined everywhere."""
    centre, half_size = field.centre.detach(), field.half_size

    def distances(points: Tensor) -> Tensor:
        offset = points - centre
        with torch.no_grad():
            inner = field.sdf(centre + offset.clamp(-half_size, half_size))
        return torch.maximum(inner.detach(), offset.abs().amax(dim=-1) - half_size)

    return distances


def _workplace(field: Field, faces: int) -> torch.device:
    """Where a mesh is cleaned and finished: on CUDA with the field, unless it would fill it."""
    fits = field.device.type == "cuda" and faces <= MOST_FACES_ON_CUDA
    return field.device if fits else torch.device("cpu")


def _clean(mesh: Mesh, config: ExtractConfig, tick: Tick) -> Mesh:
    mesh = largest_solids(
        mesh, config.min_component_share, config.max_components, lambda: tick(0.3)
    )
    tick(0.6)
    if mesh.device.type == "cuda" and not has_shared_edges(mesh.faces):
        return mesh  # the usual case, found out in milliseconds there
    return split_shared_edges(mesh)


def has_shared_edges(faces: Tensor) -> bool:  # [M, 3]
    """Whether more than two faces meet at any edge."""
    if not len(faces):
        return False
    sides = torch.cat([faces, faces.roll(-1, 1)], dim=-1).view(-1, 2, 3)
    codes = (sides.amin(1) * (faces.max() + 1) + sides.amax(1)).flatten().sort().values
    return bool((codes[2:] == codes[:-2]).any())


def _finish(mesh: Mesh, field: Field, voxel: float, config: ExtractConfig, tick: Tick) -> Mesh:
    """Vertices moved onto the surface, with normals and colours."""
    vertices = mesh.vertices
    passes = config.newton_steps + 1
    for number in range(config.newton_steps):
        share = number / passes
        moved = newton_step(vertices, field, voxel, lambda s, a=share: tick(a + s / passes))
        end = (number + 1) / passes
        vertices = keep_unfolded(vertices, moved, mesh.faces, lambda e=end: tick(e))
    share = config.newton_steps / passes
    normals = torch.empty_like(vertices)
    colours = torch.empty_like(vertices) if config.vertex_colours else None
    batch = batch_size(field.device)
    for start in range(0, len(vertices), batch):
        some = slice(start, start + batch)
        points = vertices[some].to(field.device)
        _, gradients = field.sdf_and_gradient(points)
        gradients = gradients.detach()
        normals[some] = gradients.to(normals.device)
        if colours is not None:
            with torch.no_grad():
                shades = field.colours(points, gradients).detach().clamp(0, 1)
            colours[some] = shades.to(colours.device)
        tick(share + min(1.0, (start + batch) / len(vertices)) / passes)
    mesh = dataclasses.replace(mesh, vertices=vertices, vertex_colours=colours)
    lengths = normals.norm(dim=-1, keepdim=True)
    if bool((lengths <= 1e-6).any()):  # no direction there: that of the faces around
        normals = torch.where(lengths > 1e-6, normals, _face_normals(mesh))
    return dataclasses.replace(mesh, normals=F.normalize(normals, dim=-1))


def newton_step(
    vertices: Tensor,  # [N, 3]
    field: Field,
    voxel: float,
    tick: Tick = lambda share: None,
) -> Tensor:  # [N, 3]
    """Vertices one Newton step nearer to distance zero, along the gradient, inside the cube.

    Vertices on the faces of the field's cube, which close what it cuts off, stay where they are.
    """
    centre, half_size = field.centre.detach(), field.half_size
    batch = batch_size(field.device)
    moved = torch.empty_like(vertices)
    for start in range(0, len(vertices), batch):
        points = vertices[start : start + batch].to(field.device)
        sdf, gradients = field.sdf_and_gradient(points)
        sdf, gradients = sdf.detach(), gradients.detach()
        step = sdf[:, None] * gradients / gradients.square().sum(-1, keepdim=True).clamp_min(1e-6)
        length = step.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        step = step * (LARGEST_STEP * voxel / length).clamp_max(1.0)
        from_face = half_size - (points - centre).abs().amax(dim=-1, keepdim=True)
        step = torch.where(from_face > -sdf[:, None], step, 0.0)
        on_surface = centre + (points - step - centre).clamp(-half_size, half_size)
        moved[start : start + batch] = on_surface.to(moved.device)
        tick(min(1.0, (start + batch) / len(vertices)))
    return moved


def keep_unfolded(
    vertices: Tensor,  # [N, 3]
    moved: Tensor,  # [N, 3]
    faces: Tensor,  # [M, 3]
    tick: Callable[[], None] = lambda: None,
) -> Tensor:  # [N, 3]
    """`moved`, but vertices of faces that would turn by more than `LEAST_COSINE` allows stay."""
    result = moved
    while True:
        folded = torch.zeros(len(vertices), dtype=torch.bool, device=faces.device)
        for some in faces.split(FACES_PER_BATCH):
            before, after = _normal(vertices[some]), _normal(result[some])
            along = (before * after).sum(dim=-1)
            bad = along < LEAST_COSINE * before.norm(dim=-1) * after.norm(dim=-1)
            folded[some[bad].reshape(-1)] = True
            tick()
        folded &= (result != vertices).any(dim=-1)
        if not bool(folded.any()):
            return result
        result = torch.where(folded[:, None], vertices, result)


def _normal(corners: Tensor) -> Tensor:  # [M, 3, 3] -> [M, 3], not of unit length
    a, b, c = corners.double().unbind(1)
    return torch.linalg.cross(b - a, c - a)


def _face_normals(mesh: Mesh) -> Tensor:  # [N, 3]
    normals = with_normals(mesh).normals
    assert normals is not None
    return normals


def _no_surface(field: Field) -> str:
    centre = ", ".join(f"{x:.3g}" for x in field.centre.tolist())
    return (
        f"the field has no surface in its cube (centre {centre}, half its side "
        f"{field.half_size:.3g}); fit again, and see whether the masks show the object"
    )


class _Bar:
    """Turns shares of stages into one progress from 0 to 100."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._before = 0.0

    def stage(self, name: str, text: str) -> Tick:
        start, part = self._before, STAGES[name]
        self._before = start + part

        def tick(share: float) -> None:
            self._progress(round(100 * (start + part * share)), 100, None, text)

        tick(0.0)
        return tick

    def done(self, text: str) -> None:
        self._progress(100, 100, None, text)

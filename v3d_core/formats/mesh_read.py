"""Meshes out of files of any maker, by trimesh: colours, uvs and one texture where they are."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..images import from_uint8, linear_to_srgb
from ..structures import Mesh
from .mesh_seams import merged_rows, shared_normals, unit_normals
from .mesh_texture import texture_at_vertices

logger = logging.getLogger(__name__)

READABLE_MESH_SUFFIXES = (".glb", ".ply", ".obj", ".stl")


def read_mesh(path: str | os.PathLike[str]) -> Mesh:
    """Read a .glb, .ply, .obj or .stl file; the parts of a scene become one mesh.

    Returns:
        A mesh on the CPU with normals (the file's; else computed, smooth across seams) and what
        the file has of sRGB vertex colours, uvs and a texture. Triangles of .stl files are joined
        where corners agree. Where parts have textures of their
        own, each is sampled into vertex colours, since a mesh has one texture.

    Raises:
        ValueError: Unknown suffix, a damaged file, NaN among positions, faces of missing vertices,
            or no faces at all.
        FileNotFoundError: No such file.
    """
    path = Path(path)
    linear = path.suffix.lower() == ".glb"
    placed = placed_parts(path)
    with readable_errors(path):
        parts = [_from_trimesh(part, matrix, linear) for part, matrix in placed]
    mesh = _joined(parts, path)
    return _connected(mesh) if path.suffix.lower() == ".stl" else mesh


def placed_parts(path: str | os.PathLike[str]) -> list[tuple[Any, np.ndarray]]:
    """The parts of a mesh file as trimesh's meshes, each with the 4 x 4 matrix that places it.

    Raises:
        ValueError: Unknown suffix, a damaged file, or no faces at all.
        FileNotFoundError: No such file.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in READABLE_MESH_SUFFIXES:
        known = ", ".join(READABLE_MESH_SUFFIXES)
        named = path.suffix or "without suffix"
        raise ValueError(f"{path}: meshes of format {named!r} are not read; read are {known}")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        import trimesh
    except ImportError as error:
        raise RuntimeError("reading meshes needs trimesh; pip install trimesh") from error
    with readable_errors(path):
        loaded = trimesh.load(str(path), process=False)
        scene = loaded if isinstance(loaded, trimesh.Scene) else trimesh.Scene(loaded)
        placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
        parts = [
            (scene.geometry[name], np.asarray(matrix, np.float64))
            for matrix, name in placed
            if isinstance(scene.geometry[name], trimesh.Trimesh) and len(scene.geometry[name].faces)
        ]
    if not parts:
        raise ValueError(f"{path}: no triangles in it, so it is a point cloud, a splat or empty")
    return parts


@contextmanager
def readable_errors(path: Path) -> Iterator[None]:
    """Readers of damaged files raise anything; a `ValueError` that names the file comes out."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path}: cannot be read as a mesh: {error}") from error


def placed_surface(part: Any, placement: np.ndarray) -> Mesh:
    """Positions, faces and normals of one part of a trimesh scene, placed by its 4 x 4 matrix."""
    vertices = np.array(part.vertices, np.float64)
    if not np.array_equal(placement, np.eye(4)):  # which would spread a NaN over its row
        vertices = vertices @ placement[:3, :3].T + placement[:3, 3]
    faces = np.array(part.faces, np.int64)
    if np.linalg.det(placement[:3, :3]) < 0:
        faces = faces[:, ::-1].copy()
    # made here, so that what is wrong with a file is told before anything is computed from it
    mesh = Mesh(torch.from_numpy(vertices).float(), torch.from_numpy(faces))
    return Mesh(mesh.vertices, mesh.faces, _normals(part, placement, mesh))


def _from_trimesh(part: Any, placement: np.ndarray, linear: bool) -> Mesh:
    surface = placed_surface(part, placement)
    count = len(surface.vertices)
    uvs, texture = _texture(part.visual, count)
    return dataclasses.replace(
        surface, uvs=uvs, vertex_colours=vertex_colours(part.visual, count, linear), texture=texture
    )


def _normals(part: Any, placement: np.ndarray, mesh: Mesh) -> Tensor:
    """The file's, or computed: trimesh's own end at seams."""
    stored = np.asarray(part.vertex_normals) if "vertex_normals" in part._cache else None
    if stored is None or stored.shape != tuple(mesh.vertices.shape):
        return shared_normals(mesh.vertices, mesh.faces)
    turned = torch.from_numpy(stored.astype(np.float64) @ np.linalg.inv(placement[:3, :3]))
    usable = turned.isfinite().all(dim=-1) & (turned.norm(dim=-1) > 0)
    if bool(usable.all()):
        return unit_normals(turned)
    computed = shared_normals(mesh.vertices, mesh.faces)
    return torch.where(usable[:, None], unit_normals(turned.nan_to_num()), computed)


def vertex_colours(visual: Any, count: int, linear: bool) -> Tensor | None:  # [N, 3]
    """sRGB colours that a part stores at its vertices; `linear` says how the file has them."""
    stored = visual.vertex_attributes.get("color") if visual.kind == "texture" else None
    if visual.kind == "vertex":
        stored = visual.vertex_colors
    if stored is None or len(stored) != count:
        return None
    values = np.asarray(stored)[:, :3]
    scale = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
    colours = torch.from_numpy(values.astype(np.float64) / scale)
    return (linear_to_srgb(colours) if linear else colours).clamp(0, 1).float()


def _texture(visual: Any, count: int) -> tuple[Tensor | None, Tensor | None]:
    """The uvs [N, 2] and the picture [H, W, 3]."""
    uvs, image = uvs_and_picture(visual, count)
    if uvs is None or image is None:
        return uvs, None
    return uvs, from_uint8(torch.from_numpy(np.array(image.convert("RGB"))))


def uvs_and_picture(visual: Any, count: int) -> tuple[Tensor | None, Any]:
    """Texture coordinates of `count` vertices [N, 2], and the base colour's Pillow picture."""
    if visual.kind != "texture" or visual.uv is None or len(visual.uv) != count:
        return None, None
    # trimesh counts v upwards; back in float64, so that no float32 is rounded twice
    upward = np.asarray(visual.uv, np.float64)[:, :2]
    uvs = torch.from_numpy(upward * [1, -1] + [0, 1]).float()
    material = visual.material
    image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
    return uvs, image


def _joined(parts: list[Mesh], path: Path) -> Mesh:
    """All parts as one mesh; what some of them lack is left out."""
    if len(parts) == 1:
        return parts[0]
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts]).tolist()
    joined = Mesh(
        torch.cat([part.vertices for part in parts]),
        torch.cat([part.faces + offset for part, offset in zip(parts, offsets)]),
        torch.cat([part.normals for part in parts if part.normals is not None]),
    )
    textures = [part.texture for part in parts]
    if _all_equal(textures):
        colours = [part.vertex_colours for part in parts]
    else:
        logger.warning(
            "%s: its %d parts do not share one texture; their colours are taken at the vertices",
            path,
            len(parts),
        )
        textures = [None]
        colours = [
            part.vertex_colours if part.texture is None else texture_at_vertices(part)
            for part in parts
        ]
    uvs = [part.uvs for part in parts] if textures[0] is not None else [None]
    return Mesh(
        joined.vertices,
        joined.faces,
        joined.normals,
        _concatenated(uvs),
        _concatenated(colours),
        textures[0],
    )


def _connected(mesh: Mesh) -> Mesh:
    """The corners of loose triangles joined where they are at one position."""
    first, places = merged_rows(mesh.vertices.numpy())
    vertices = mesh.vertices[torch.from_numpy(first)]
    faces = torch.from_numpy(places)[mesh.faces]
    return Mesh(vertices, faces, shared_normals(vertices, faces))


def _concatenated(values: Sequence[Tensor | None]) -> Tensor | None:
    present = [value for value in values if value is not None]
    return torch.cat(present) if len(present) == len(values) else None


def _all_equal(textures: list[Tensor | None]) -> bool:
    first = textures[0]
    if first is None:
        return all(texture is None for texture in textures)
    return all(texture is not None and torch.equal(texture, first) for texture in textures)

"""Meshes to .glb, .ply, .obj, .stl and .usdz, told apart by the suffix; `read_mesh` reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from ..backends import load_usd
from ..structures import Mesh
from .atomic import atomic_path
from .glb import encode_glb
from .mesh_ply import write_mesh_ply
from .mesh_read import READABLE_MESH_SUFFIXES, read_mesh
from .mesh_seams import shared_normals, unit_normals
from .obj import write_obj
from .stl import write_stl
from .usdz import write_usdz

__all__ = [
    "MESH_SUFFIXES",
    "READABLE_MESH_SUFFIXES",
    "read_mesh",
    "require_mesh_suffix",
    "write_mesh",
]

MESH_SUFFIXES = (".glb", ".ply", ".obj", ".stl", ".usdz")


def write_mesh(
    path: str | os.PathLike[str],
    mesh: Mesh,
    unlit: bool | None = None,
    *,
    stl_size_mm: float | None = None,
    glb_extras: dict[str, Any] | None = None,
) -> None:
    """Write a mesh, complete or not at all.

    What each format can carry: .glb and .usdz normals and a texture or else linear vertex colours,
    in one file; .obj (with .mtl and .png) and .ply (with .png) normals, uvs, texture and sRGB
    vertex colours; .stl the shape only. +Y is up and a world unit is a metre in all but .stl,
    which has no unit.

    Args:
        path: The file to write; its suffix chooses the format.
        mesh: A world-frame mesh with at least one face. Missing normals are computed, smooth
            across texture seams.
        unlit: .glb and .usdz only: show colours without a viewer's lights. None: yes if the mesh
            has any colours, since those fitted from pictures contain the light already.
        stl_size_mm: .stl only: length of the longest side, in the millimetres slicers assume; None
            writes world units as they are.
        glb_extras: .glb only: what JSON can hold, kept as `asset.extras`.

    Raises:
        ValueError: Unknown suffix, or a mesh without faces.
        OutputError: The disk is full or the folder cannot be written; no half file is left.
        MissingPackageError: .usdz without usd-core; the message says how to install it.
    """
    path = Path(path)
    require_mesh_suffix(path)
    if not len(mesh.faces):
        raise ValueError(f"{path}: the mesh has {len(mesh.vertices)} vertices and no faces")
    mesh = _prepared(mesh)
    if unlit is None:
        unlit = mesh.texture is not None or mesh.vertex_colours is not None
    match path.suffix.lower():
        case ".glb":
            with atomic_path(path) as temporary:
                temporary.write_bytes(encode_glb(mesh, unlit, glb_extras))
        case ".ply":
            write_mesh_ply(path, mesh)
        case ".obj":
            write_obj(path, mesh)
        case ".stl":
            write_stl(path, mesh, stl_size_mm)
        case _:
            write_usdz(path, mesh, unlit)


def require_mesh_suffix(path: Path) -> None:
    """Raise ValueError unless `write_mesh` knows the suffix, and what .usdz needs is installed."""
    if path.suffix.lower() not in MESH_SUFFIXES:
        known = ", ".join(MESH_SUFFIXES)
        suffix = path.suffix or "without suffix"
        raise ValueError(f"{path}: unknown mesh format {suffix!r}; known are {known}")
    if path.suffix.lower() == ".usdz":
        load_usd()


def _prepared(mesh: Mesh) -> Mesh:
    """The mesh on the CPU in float32, with unit normals."""
    mesh = mesh.to("cpu", torch.float32)
    normals = mesh.normals
    normals = (
        shared_normals(mesh.vertices, mesh.faces) if normals is None else unit_normals(normals)
    )
    optional = {
        name: None if (value := getattr(mesh, name)) is None else value.detach()
        for name in ("uvs", "vertex_colours", "texture")
    }
    return Mesh(mesh.vertices.detach(), mesh.faces, normals.detach(), **optional)

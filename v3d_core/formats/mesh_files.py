"""Meshes to and from .glb, .ply, .obj and .stl, told apart by their suffix."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..images import from_uint8, linear_to_srgb, to_uint8
from ..structures import Mesh
from .atomic import atomic_folder, atomic_path
from .glb import encode_glb


def write_mesh(path: str | os.PathLike[str], mesh: Mesh, unlit: bool | None = None) -> None:
    """Write a mesh, complete or not at all.

    What each format can carry: .glb normals and a texture or else linear vertex colours, in one
    file; .ply normals and 8-bit sRGB vertex colours (a texture is sampled at the vertices); .obj
    normals, sRGB vertex colours and a texture (.mtl and .png beside it); .stl the shape only.

    Args:
        path: The file to write; its suffix chooses the format.
        mesh: A world-frame mesh with at least one face. Missing normals are computed.
        unlit: .glb only: show colours without a viewer's lights. None: yes if the mesh has any
            colours, since those fitted from pictures contain the light already.
    """
    path = Path(path)
    require_mesh_suffix(path)
    if not len(mesh.faces):
        raise ValueError(f"{path}: the mesh has {len(mesh.vertices)} vertices and no faces")
    mesh = _prepared(mesh)
    if unlit is None:
        unlit = mesh.texture is not None or mesh.vertex_colours is not None
    _WRITERS[path.suffix.lower()](path, mesh, unlit)


def read_mesh(path: str | os.PathLike[str]) -> Mesh:
    """Read a mesh of any format that `write_mesh` knows; the parts of a scene become one.

    Returns:
        A mesh on the CPU with normals (the file's, or computed) and what the file has of sRGB
        vertex colours, uvs and a texture.
    """
    path = Path(path)
    require_mesh_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        import trimesh
    except ImportError as error:
        raise RuntimeError("reading meshes needs trimesh; pip install trimesh") from error
    try:
        loaded = trimesh.load(str(path), process=False, maintain_order=True)
        scene = loaded if isinstance(loaded, trimesh.Scene) else trimesh.Scene(loaded)
        placed = [scene.graph[node] for node in scene.graph.nodes_geometry]
        parts = [
            _from_trimesh(scene.geometry[name], matrix, linear=path.suffix.lower() == ".glb")
            for matrix, name in placed
            if isinstance(scene.geometry[name], trimesh.Trimesh) and len(scene.geometry[name].faces)
        ]
    except Exception as error:  # readers of damaged files raise anything
        raise ValueError(f"{path}: cannot be read as a mesh: {error}") from error
    if not parts:
        raise ValueError(f"{path}: no triangles in it, so it is a point cloud, a splat or empty")
    return _joined(parts)


def vertex_normals(vertices: Tensor, faces: Tensor) -> Tensor:  # [N, 3], [M, 3] -> [N, 3]
    """Area-weighted unit normals; +Y where no face gives a direction."""
    corners = vertices.double()[faces]
    area = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    total = torch.zeros_like(vertices, dtype=torch.float64)
    total.index_add_(0, faces.reshape(-1), area.repeat_interleave(3, dim=0))
    return _unit(total)


def _unit(directions: Tensor) -> Tensor:  # [N, 3] -> [N, 3] float32
    length = directions.double().norm(dim=-1, keepdim=True)
    up = torch.tensor([0.0, 1.0, 0.0], dtype=torch.float64, device=directions.device)
    return torch.where(length > 1e-30, directions / length.clamp_min(1e-30), up).float()


def _prepared(mesh: Mesh) -> Mesh:
    """The mesh on the CPU in float32, with unit normals."""
    mesh = mesh.to("cpu", torch.float32)
    normals = mesh.normals
    normals = vertex_normals(mesh.vertices, mesh.faces) if normals is None else _unit(normals)
    optional = {
        name: None if (value := getattr(mesh, name)) is None else value.detach()
        for name in ("uvs", "vertex_colours", "texture")
    }
    return Mesh(mesh.vertices.detach(), mesh.faces, normals.detach(), **optional)


def _write_glb(path: Path, mesh: Mesh, unlit: bool) -> None:
    with atomic_path(path) as temporary:
        temporary.write_bytes(encode_glb(mesh, unlit))


def _write_ply(path: Path, mesh: Mesh, unlit: bool) -> None:
    colours = mesh.vertex_colours
    if colours is None and mesh.texture is not None:
        colours = _sample_texture(mesh)
    fields = [(axis, "<f4") for axis in ("x", "y", "z", "nx", "ny", "nz")]
    if colours is not None:
        fields += [(channel, "u1") for channel in ("red", "green", "blue")]
    table = np.empty(len(mesh.vertices), fields)
    assert mesh.normals is not None
    for index, axis in enumerate("xyz"):
        table[axis] = mesh.vertices[:, index].numpy()
        table[f"n{axis}"] = mesh.normals[:, index].numpy()
    if colours is not None:
        for index, channel in enumerate(("red", "green", "blue")):
            table[channel] = to_uint8(colours[:, index]).numpy()
    faces = np.empty(len(mesh.faces), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"] = 3
    faces["index"] = mesh.faces.numpy()
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property {'float' if kind == '<f4' else 'uchar'} {name}" for name, kind in fields]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices"]
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write("\n".join([*lines, "end_header", ""]).encode("ascii"))
        file.write(table.tobytes() + faces.tobytes())


def _write_obj(path: Path, mesh: Mesh, unlit: bool) -> None:
    stem = re.sub(r"\s+", "_", path.stem)  # readers split material file names at spaces
    assert mesh.normals is not None
    lines = ["# x y z" + (" r g b (sRGB)" if mesh.vertex_colours is not None else "")]
    rows = mesh.vertices
    if mesh.vertex_colours is not None:
        rows = torch.cat([rows, mesh.vertex_colours.clamp(0, 1)], dim=1)
    lines += ["v " + " ".join(f"{x:.7g}" for x in row) for row in rows.tolist()]
    lines += ["vn " + " ".join(f"{x:.5g}" for x in row) for row in mesh.normals.tolist()]
    textured = mesh.texture is not None and mesh.uvs is not None
    if mesh.uvs is not None:  # obj counts v upwards
        lines += [f"vt {u:.7g} {1 - v:.7g}" for u, v in mesh.uvs.tolist()]
    corner = "{0}/{0}/{0}" if mesh.uvs is not None else "{0}//{0}"
    if textured:
        lines += [f"mtllib {stem}.mtl", "usemtl material"]
    for a, b, c in (mesh.faces + 1).tolist():
        lines.append(f"f {corner.format(a)} {corner.format(b)} {corner.format(c)}")
    with atomic_folder(path.parent) as folder:
        if textured:
            assert mesh.texture is not None
            Image.fromarray(to_uint8(mesh.texture).numpy()).save(folder / f"{stem}.png")
            material = (
                f"newmtl material\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {stem}.png\n"
            )
            (folder / f"{stem}.mtl").write_text(material, encoding="utf-8")
        (folder / path.name).write_text("\n".join([*lines, ""]), encoding="utf-8")


def _write_stl(path: Path, mesh: Mesh, unlit: bool) -> None:
    triangles = np.zeros(
        len(mesh.faces), [("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")]
    )
    corners = mesh.vertices[mesh.faces]
    normals = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    triangles["corners"] = corners.numpy()
    triangles["normal"] = torch.nn.functional.normalize(normals, dim=-1).numpy()
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        file.write(b"ComfyUI-V3D".ljust(80))
        file.write(np.uint32(len(triangles)).astype("<u4").tobytes() + triangles.tobytes())


_WRITERS: dict[str, Callable[[Path, Mesh, bool], None]] = {
    ".glb": _write_glb,
    ".ply": _write_ply,
    ".obj": _write_obj,
    ".stl": _write_stl,
}
MESH_SUFFIXES = tuple(_WRITERS)


def require_mesh_suffix(path: Path) -> None:
    """Raise ValueError unless the suffix is one of `MESH_SUFFIXES`."""
    if path.suffix.lower() not in _WRITERS:
        known = ", ".join(MESH_SUFFIXES)
        suffix = path.suffix or "without suffix"
        raise ValueError(f"{path}: unknown mesh format {suffix!r}; known are {known}")


def _sample_texture(mesh: Mesh) -> Tensor:  # [N, 3]
    assert mesh.texture is not None and mesh.uvs is not None
    height, width, _ = mesh.texture.shape
    column = (mesh.uvs[:, 0] * width).long().clamp(0, width - 1)
    row = (mesh.uvs[:, 1] * height).long().clamp(0, height - 1)
    return mesh.texture[row, column]


def _from_trimesh(part: Any, matrix: np.ndarray, linear: bool) -> Mesh:
    """One part of a trimesh scene, placed by its 4 x 4 matrix."""
    rotation = np.asarray(matrix, np.float64)[:3, :3]
    vertices = np.asarray(part.vertices, np.float64) @ rotation.T + np.asarray(matrix)[:3, 3]
    normals = np.asarray(part.vertex_normals, np.float64) @ np.linalg.inv(rotation)
    faces = np.array(part.faces, np.int64)
    if np.linalg.det(rotation) < 0:
        faces = faces[:, ::-1].copy()
    visual, count = part.visual, len(vertices)
    colours = uvs = texture = None
    stored = visual.vertex_attributes.get("color") if visual.kind == "texture" else None
    if visual.kind == "vertex":
        stored = visual.vertex_colors
    if stored is not None and len(stored) == count:
        values = np.asarray(stored)[:, :3]
        scale = 1.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max)
        values = torch.from_numpy(values.astype(np.float64) / scale)
        colours = (linear_to_srgb(values) if linear else values).clamp(0, 1).float()
    elif visual.kind == "texture" and visual.uv is not None and len(visual.uv) == count:
        uvs = torch.from_numpy(np.array(visual.uv, np.float32))
        uvs[:, 1] = 1 - uvs[:, 1]  # trimesh counts v upwards
        material = visual.material
        image = getattr(material, "baseColorTexture", None) or getattr(material, "image", None)
        if image is not None:
            texture = from_uint8(torch.from_numpy(np.array(image.convert("RGB"))))
    return Mesh(
        torch.from_numpy(vertices).float(),
        torch.from_numpy(faces),
        _unit(torch.from_numpy(normals)),
        uvs,
        colours,
        texture,
    )


def _joined(parts: list[Mesh]) -> Mesh:
    """All parts as one mesh; colours stay if every part has them, a texture if there is one part."""
    if len(parts) == 1:
        return parts[0]
    colours = [part.vertex_colours for part in parts]
    offsets = np.cumsum([0] + [len(part.vertices) for part in parts]).tolist()
    return Mesh(
        torch.cat([part.vertices for part in parts]),
        torch.cat([part.faces + offset for part, offset in zip(parts, offsets)]),
        torch.cat([part.normals for part in parts if part.normals is not None]),
        vertex_colours=torch.cat([c for c in colours if c is not None])
        if all(c is not None for c in colours)
        else None,
    )

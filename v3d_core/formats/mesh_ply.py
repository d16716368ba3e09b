"""Binary .ply of one mesh, as MeshLab, Blender and research code read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ..images import to_uint8
from ..structures import Mesh
from .atomic import atomic_folder
from .mesh_seams import merged_rows
from .mesh_texture import png_bytes, texture_at_vertices
from .obj import file_stem


def write_mesh_ply(path: Path, mesh: Mesh) -> None:
    """Write positions, normals, 8-bit sRGB colours and uvs (`s`, `t`, counted from below).

    A texture becomes a .png beside the file, named by `comment TextureFile` as MeshLab does, and
    is sampled for the vertex colours, since many readers know only those. Without uvs, vertices
    that agree in everything are written once, so that the surface is connected.

    Args:
        path: The .ply file; all files appear, or none.
        mesh: A float32 mesh on the CPU with normals.
    """
    assert mesh.normals is not None
    columns = {axis: mesh.vertices[:, index] for index, axis in enumerate("xyz")}
    columns |= {f"n{axis}": mesh.normals[:, index] for index, axis in enumerate("xyz")}
    textured = mesh.texture is not None and mesh.uvs is not None
    if mesh.uvs is not None:
        columns |= {"s": mesh.uvs[:, 0], "t": 1 - mesh.uvs[:, 1]}
    colours = texture_at_vertices(mesh) if textured else mesh.vertex_colours
    if colours is not None:
        names = ("red", "green", "blue")
        columns |= {name: to_uint8(colours[:, i]) for i, name in enumerate(names)}
    kinds = {"torch.float32": ("<f4", "float"), "torch.uint8": ("u1", "uchar")}
    fields = {name: kinds[str(values.dtype)] for name, values in columns.items()}
    table = np.empty(len(mesh.vertices), [(name, code) for name, (code, _) in fields.items()])
    for name, values in columns.items():
        table[name] = values.numpy()
    indices = mesh.faces.numpy()
    if mesh.uvs is None:
        first, places = merged_rows(np.stack([v.numpy() for v in columns.values()], axis=1))
        table, indices = table[first], places[indices]
    faces = np.empty(len(indices), [("count", "u1"), ("index", "<i4", 3)])
    faces["count"], faces["index"] = 3, indices
    picture = f"{file_stem(path)}.png"
    lines = ["ply", "format binary_little_endian 1.0"]
    lines += [f"comment TextureFile {picture}"] if textured else []
    lines += [f"element vertex {len(table)}"]
    lines += [f"property {kind} {name}" for name, (_, kind) in fields.items()]
    lines += [f"element face {len(faces)}", "property list uchar int vertex_indices", "end_header"]
    with atomic_folder(path.parent) as folder:
        if textured:
            assert mesh.texture is not None
            (folder / picture).write_bytes(png_bytes(mesh.texture))
        with open(folder / path.name, "wb") as file:
            file.write("\n".join([*lines, ""]).encode("utf-8"))
            file.write(table.tobytes())
            file.write(faces.tobytes())
